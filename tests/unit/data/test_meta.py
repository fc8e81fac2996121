"""What stands beside a prompt in its file: kept, whatever it is, in values that JSON can hold."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rlhf.data.loading import load_demonstrations, load_prompts
from rlhf.data.meta import about
from rlhf.data.schema import Message
from rlhf.errors import DataError

NOON = datetime.datetime(2026, 1, 2, 12, tzinfo=datetime.UTC)
COLUMNS: dict[str, tuple[list[Any], Any]] = {
    "score": ([float("nan"), 1.5], None),
    "far": ([float("inf"), 1.5], None),
    "when": ([NOON, NOON], "2026-01-02T12:00:00+00:00"),
    "day": ([NOON.date(), NOON.date()], "2026-01-02"),
    "time": ([NOON.time(), NOON.time()], "12:00:00"),
    "took": ([datetime.timedelta(seconds=90)] * 2, "0:01:30"),
    "price": ([Decimal("1.50")] * 2, "1.50"),
    "image": ([b"\xff\x00"] * 2, None),
    "nested": ([{"at": [NOON.date(), None], "n": float("nan")}] * 2, {"at": ["2026-01-02", None], "n": None}),
    "answer": (["4", "5"], "4"),
    "tests": ([["f(1)"], ["f(2)"]], ["f(1)"]),
}


ARROW: dict[str, tuple[list[Any], pyarrow.DataType, Any]] = {
    "nanoseconds": ([1_700_000_000_123_456_789, None], pyarrow.timestamp("ns"), "2023-11-14T22:13:20.123456789"),
    "time": ([123_456_789, None], pyarrow.time64("ns"), "00:00:00.123456"),
    "far date": ([10**7, None], pyarrow.date32(), "29349-01-26"),
    "map": ([[("k", 1.5)], None], pyarrow.map_(pyarrow.string(), pyarrow.float64()), [["k", 1.5]]),
    "half": ([1.5, None], pyarrow.float16(), 1.5),
    "decimal": ([Decimal("1.50"), None], pyarrow.decimal128(5, 2), "1.50"),
}


@pytest.mark.parametrize("name", ARROW)
def test_values_that_only_arrow_has(tmp_path: Path, name: str) -> None:
    values, kind, kept = ARROW[name]
    path = tmp_path / "p.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["Hi", "Ho"], "x": pyarrow.array(values, kind)}), path)
    first, second = load_prompts(path)
    found = json.loads(json.dumps(first.meta["x"], allow_nan=False))
    assert (found.replace(" ", "T") if isinstance(found, str) else found) == kept and second.meta == {"x": None}


def parquet(path: Path, **columns: list[Any]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("name", COLUMNS)
def test_no_column_makes_a_prompt_file_unusable(tmp_path: Path, name: str) -> None:
    values, kept = COLUMNS[name]
    path = parquet(tmp_path / "p.parquet", prompt=["Hi", "Ho"], **{name: values})
    first, second = load_prompts(path)
    assert first.meta == {name: kept} and second.messages == (Message("text", "Ho"),)
    json.dumps([first.meta, second.meta], allow_nan=False)


def test_an_object_named_meta_is_taken_for_the_columns(tmp_path: Path) -> None:
    path = parquet(tmp_path / "p.parquet", prompt=["Hi"], id=["a"], other=[1], meta=[{"when": NOON.date(), "n": 1}])
    (row,) = load_prompts(path)
    assert about(row) == {"id": "a", "when": "2026-01-02", "n": 1}


def test_the_row_s_own_id_is_told(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "a", "prompt": "Hi", "meta": {"id": "of another table", "n": 1}}\n')
    (row,) = load_prompts(path)
    assert about(row) == {"id": "a", "n": 1}


def test_a_column_that_cannot_be_carried_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "Hi", "title": "\\ud800"}\n')
    with pytest.raises(DataError, match="field 'meta': 'title' holds a lone surrogate"):
        load_prompts(path)


def test_questions_with_answers_are_a_known_format(tmp_path: Path) -> None:
    path = tmp_path / "gsm.jsonl"
    rows = [{"question": "2 + 2?", "answer": "It is 4.\n#### 4"}, {"question": "2 + 3?", "answer": "#### 5"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = load_prompts(path)
    assert [row.messages for row in prompts] == [(Message("user", row["question"]),) for row in rows]
    assert [row.meta for row in prompts] == [{"answer": row["answer"]} for row in rows]
    assert [row.response for row in load_demonstrations(path)] == [row["answer"] for row in rows]
    path.write_text('{"question": "2 + 2?", "answer": 4}\n')
    assert load_prompts(path)[0].meta == {"answer": 4}
    with pytest.raises(DataError, match="no response to imitate"):
        load_demonstrations(path)


@pytest.mark.parametrize(
    ("record", "format_meta"),
    [
        ({"prompt": "Hi", "question": "q", "answer": "a"}, {"question": "q", "answer": "a"}),
        ({"instruction": "Hi", "input": "x", "output": "o"}, {"output": "o"}),
        ({"prompt": "Hi", "completion": "c"}, {"completion": "c"}),
    ],
)
def test_answers_of_demonstrations_are_references(
    tmp_path: Path, record: dict[str, str], format_meta: dict[str, str]
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(record) + "\n")
    (row,) = load_prompts(path)
    assert row.messages[0].content.startswith("Hi") and row.meta == format_meta
