"""Damage of every kind: named by file, line and field, nothing lost, nothing guessed."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.data.loading import load_demonstrations, load_preferences, load_prompts
from rlhf.errors import DataError

GOOD = {"prompt": "Hi", "chosen": "yes", "rejected": "no"}


def line(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in GOOD.items() if key != name}).encode()


BAD_LINES: dict[str, tuple[bytes, str]] = {
    "not UTF-8": (b'{"prompt": "\xff\xfe", "chosen": "a", "rejected": "b"}', "not UTF-8"),
    "latin-1": ('{"prompt": "é", "chosen": "a", "rejected": "b"}'.encode("latin-1"), "not UTF-8"),
    "raw NUL": (b'{"prompt": "a\0b", "chosen": "a", "rejected": "b"}', "not complete JSON"),
    "escaped NUL": (line(prompt="a\0b"), "field 'prompt': holds a NUL"),
    "lone surrogate": (line(chosen="x\ud83d"), "field 'chosen': holds a lone surrogate at character 1"),
    "cut off": (line()[:-9], "not complete JSON"),
    "two objects": (line() + line(), "text after the JSON object"),
    "NaN": (b'{"prompt": "a", "chosen": "b", "rejected": "c", "margin": NaN}', "literal NaN"),
    "infinite": (b'{"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1e999}', "field 'margin'"),
    "huge integer": (b'{"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1' + b"0" * 999 + b"}", "margin"),
    "endless integer": (b'{"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1' + b"0" * 5000 + b"}", "JSON"),
    "duplicate key": (b'{"prompt": "a", "chosen": "b", "chosen": "c", "rejected": "d"}', "'chosen': appears twice"),
    "nested too deeply": (b'{"prompt": ' + b"[" * 40_000, "nested too deeply"),
    "a list": (b'["prompt", "chosen"]', "is a JSON list"),
    "a text": (b'"prompt"', "is a JSON str"),
    "null": (b"null", "is a JSON NoneType"),
    "missing prompt and no common text": (without("prompt"), "field 'chosen': shares no prompt"),
    "missing rejected": (without("rejected"), "field 'rejected': is missing"),
    "null rejected": (line(rejected=None), "field 'rejected': is null"),
    "integer response": (line(rejected=3), "field 'rejected': is int, text is wanted"),
    "boolean prompt": (line(prompt=True), "field 'prompt': is bool"),
    "empty prompt": (line(prompt=""), "field 'prompt': is empty"),
    "blank response": (line(chosen=" \n"), "field 'chosen': holds only white space"),
    "empty list": (line(prompt=[]), "field 'prompt': is an empty list"),
    "equal responses": (line(chosen="no"), "field 'chosen': equals 'rejected'"),
    "unknown role": (line(prompt=[{"role": "robot", "content": "x"}]), "prompt[0].role"),
    "role of a wrong type": (line(prompt=[{"role": ["user"], "content": "x"}]), "prompt[0].role"),
    "no role": (line(prompt=[{"content": "x"}]), "field 'prompt[0].role': is missing"),
    "no content": (line(prompt=[{"role": "user"}]), "field 'prompt[0].content': is null"),
    "turn that is a text": (line(prompt=["user: x"]), "field 'prompt[0]': is str"),
    "prompt ends with the assistant": (line(prompt=[{"role": "assistant", "content": "x"}]), "ends with a assistant"),
    "two answers": (line(chosen=[{"role": "assistant", "content": "x"}] * 2, rejected=[]), "rejected"),
    "probability above one": (line(probability=1.5), "field 'probability': lies outside [0, 1]"),
    "probability as text": (line(probability="0.5"), "field 'probability': is str"),
    "negative weight": (line(weight=-1), "field 'weight'"),
    "boolean margin": (line(margin=True), "field 'margin': is bool"),
    "group of a wrong type": (line(group=3), "field 'group': is int"),
    "misspelt field": (line(probabilty=0.5), "'probability' is"),
    "empty id": (line(id=""), "field 'id': is empty"),
    "id of a wrong type": (line(id=[1]), "field 'id': is list"),
    "duplicate id": (line(id="first"), "is taken by"),
    "over-long line": (line(chosen="x" * 60_000), "longer than 50000 bytes"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_row_is_refused_by_place_and_field_or_dropped_with_its_reason(tmp_path: Path, name: str) -> None:
    bad, reason = BAD_LINES[name]
    path, dropped = tmp_path / "p.jsonl", tmp_path / "out" / "dropped.jsonl"
    path.write_bytes(b"\n".join([line(id="first"), bad, line(id="last")]))
    with pytest.raises(DataError, match="1 of 3 rows") as error:
        load_preferences(path, max_line_bytes=50_000)
    assert f"{path}:2: " in str(error.value) and reason in str(error.value)
    rows = load_preferences(path, on_bad_row="drop", dropped_path=dropped, max_line_bytes=50_000)
    assert [row.id for row in rows] == ["first", "last"]
    (entry,) = map(json.loads, dropped.read_text().split("\n")[:-1])
    assert (entry["file"], entry["line"]) == (str(path), 2)
    assert entry["reason"] and entry["field"]


def test_all_bad_rows_are_reported_at_once_and_every_line_is_accounted_for(tmp_path: Path) -> None:
    path, dropped = tmp_path / "p.jsonl", tmp_path / "dropped.jsonl"
    bad = [raw for name, (raw, _) in BAD_LINES.items() if name not in ("duplicate id", "over-long line")]
    lines = [line(id="ok"), *bad, line()]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError) as error:
        load_preferences(path)
    assert sum(f"{path}:{number}: " in str(error.value) for number in range(1, len(lines) + 1)) == len(bad)
    rows = load_preferences(path, on_bad_row="drop", dropped_path=dropped)
    assert len(rows) + dropped.read_text().count("\n") == len(lines)


@pytest.mark.parametrize(
    "raw",
    [
        b"\xef\xbb\xbf" + line() + b"\n",
        line() + b"\r\n" + b"\r\n",
        b"\n\n" + line() + b"\n  \n",
        line(),
    ],
    ids=["BOM", "CRLF", "blank lines", "no last line end"],
)
def test_harmless_habits_are_accepted(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(raw)
    assert [row.chosen for row in load_preferences(path)] == ["yes"]


def test_a_line_separator_inside_a_text_is_no_line_end(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({**GOOD, "prompt": "a\u2028b\u0085c\x0cd"}, ensure_ascii=False), encoding="utf-8")
    assert load_preferences(path)[0].prompt[0].content == "a\u2028b\u0085c\x0cd"


def test_an_empty_result_says_what_removed_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\n".join([line(chosen="no"), line(chosen="no"), line(prompt="")]))
    with pytest.raises(DataError, match=r"none of 3 rows(.|\n)*2 x chosen equals(.|\n)*1 x prompt is empty"):
        load_preferences(path, on_bad_row="drop", dropped_path=tmp_path / "dropped.jsonl")
    for name in ("e.jsonl", "e.json", "e.csv"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(DataError, match="empty"):
            load_preferences(tmp_path / name)


def test_a_file_with_no_readable_line_reports_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("hello\nworld\n")
    with pytest.raises(DataError, match="2 of 2 rows") as error:
        load_preferences(path)
    assert f"{path}:2:" in str(error.value)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[\n{"prompt": "a"},\n{"prompt": "b"', ":3: is not complete JSON"),
        ('[\n{"prompt": "a"}\n{"prompt": "b"}]', ":3: has no ',' or ']'"),
        ('[{"prompt": "a"}', ":1: has no ',' or ']'"),
        ('[{"prompt": "a"}]\nx', ":2: has text after the array"),
        ('"prompt"', ":1: does not start with"),
        ('[{"prompt": "a"},]', "is not complete JSON"),
    ],
)
def test_a_broken_array_is_refused_even_when_rows_may_be_dropped(tmp_path: Path, text: str, place: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        load_prompts(path, on_bad_row="drop", dropped_path=tmp_path / "dropped.jsonl")
    assert str(path) in str(error.value) and place in str(error.value)


def test_array_rows_are_located_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('[\n{"prompt": "a"},\n\n{"prompt": "a", "prompt": "b"},\n7,\n{"prompt": NaN}]')
    with pytest.raises(DataError, match="3 of 4 rows") as error:
        load_prompts(path)
    assert all(f"{path}:{number}: " in str(error.value) for number in (4, 5, 6))
    path.write_text(json.dumps([{"prompt": "x" * 300_000}]))
    with pytest.raises(DataError, match="longer than 100000"):
        load_prompts(path, max_line_bytes=100_000)
    path.write_bytes('[{"prompt": "é"}]'.encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        load_prompts(path)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"prompt,completion\nx\n", "has 1 cells, the header has 2"),
        (b"prompt,completion\nx,y,z\n", "has 3 cells, the header has 2"),
        (b"prompt,completion\n\xff,y\n", "is not UTF-8"),
        (b'prompt,completion\n"x"y,z\n', "is not CSV"),
        (b'prompt,completion\n"x,y\n', "is not CSV"),
        (b"prompt,completion\nx,\n", "field 'completion': is empty"),
        (b"prompt,prompt\nx,y\n", "appears twice"),
        (b"prompt,completion\n" + b"x" * 5000 + b",y\n", "longer than 4000 bytes"),
    ],
)
def test_bad_csv_is_refused(tmp_path: Path, raw: bytes, reason: str) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(raw)
    with pytest.raises(DataError) as error:
        load_demonstrations(path, format="prompt_completion", max_line_bytes=4000)
    assert str(path) in str(error.value) and reason in str(error.value)


def test_bad_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"prompt": "x"}, {"prompt": None}]), path)
    with pytest.raises(DataError, match=r"d.parquet:2: field 'prompt': is null"):
        load_prompts(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not readable parquet"):
        load_prompts(path)


def test_memory_does_not_grow_with_a_long_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    with path.open("wb") as stream:
        stream.write(b'{"prompt": "')
        for _ in range(100):
            stream.write(b"x" * 2**20)
        stream.write(b'"}\n{"prompt": "short"}\n')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = load_prompts(path, on_bad_row="drop", dropped_path=tmp_path / "dropped.jsonl")
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert [row.id for row in rows] == ["p.jsonl:2"]
    assert grown_mib < 50  # the line is 100 MiB long


@pytest.mark.parametrize("depth", [300, 900, 940, 980, 990, 1000])
def test_deep_values_are_refused_or_carried(tmp_path: Path, depth: int) -> None:
    deep = "[" * depth + "]" * depth
    path = tmp_path / "p.jsonl"
    texts = [
        '{"prompt": "a", "x": %s}',
        '{"prompt": [{"role": %s, "content": "x"}]}',
        '{"conversations": [{"from": %s}]}',
    ]
    path.write_text("\n".join(text % deep for text in texts))
    read_all(path, tmp_path)


LOADERS = (load_prompts, load_demonstrations, load_preferences)
NAMES = ("prompt", "completion", "chosen", "rejected", "messages", "instruction", "input", "output", "instances")
KEYS = st.sampled_from([*NAMES, "conversations", "role", "content", "from", "value", "id", "meta", "probability"])
WORDS = st.sampled_from(["user", "assistant", "human", "gpt", "\n\nHuman: a\n\nAssistant: b", "", "x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


def read_all(path: Path, folder: Path) -> None:
    for load in LOADERS:
        for arguments in ({}, {"on_bad_row": "drop", "dropped_path": folder / "dropped.jsonl"}):
            try:
                assert load(path, **arguments)  # type: ignore[operator]
            except DataError as error:
                assert str(path) in str(error)


@settings(max_examples=80, deadline=None)
@given(records=st.lists(st.dictionaries(KEYS, VALUES, max_size=5), min_size=1, max_size=3))
def test_any_record_ends_in_rows_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / "r.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    read_all(path, folder)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
@settings(max_examples=35, deadline=None)
@given(data=st.data())
def test_any_bytes_end_in_rows_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / f"r{suffix}"
    whole = json.dumps([{"prompt": "é x", "completion": "y"}] * 2, ensure_ascii=False).encode()
    if suffix == ".parquet":
        table = pyarrow.Table.from_pylist([{"prompt": "x", "completion": "y"}] * 3)
        pyarrow.parquet.write_table(table, path)
        whole = path.read_bytes()
    elif suffix == ".csv":
        whole = b'prompt,completion\n"x, y",z\nx,"y\nz"\n'
    raw = bytearray(whole)
    for position, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=4)
    ):
        raw[position] = value
    raw = raw[: data.draw(st.integers(0, len(raw)))] + data.draw(st.binary(max_size=6))
    path.write_bytes(raw)
    read_all(path, folder)
