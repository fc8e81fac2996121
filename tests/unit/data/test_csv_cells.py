"""Cells of a CSV file: turns as JSON, text as text, nothing where nothing stands."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from rlhf.data.loading import load_demonstrations, load_preferences, load_prompts
from rlhf.data.schema import Message
from rlhf.errors import DataError

ASKED = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
YES, NO = [{"role": "assistant", "content": "yes"}], [{"role": "assistant", "content": "no"}]


def table(path: Path, *rows: list[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return path


def test_conversational_columns_are_turns(tmp_path: Path) -> None:
    path = table(tmp_path / "p.csv", ["prompt", "chosen", "rejected"], [json.dumps(v) for v in (ASKED, YES, NO)])
    (pair,) = load_preferences(path)
    assert pair.prompt == (Message("system", "Be kind."), Message("user", "Hi"))
    assert (pair.chosen, pair.rejected) == ("yes", "no")
    for name in ("completion", "response"):
        (row,) = load_demonstrations(table(tmp_path / f"{name}.csv", ["prompt", name], [json.dumps(ASKED), "yes"]))
        assert [m.role for m in row.messages] == ["system", "user", "assistant"] and row.response == "yes"


@pytest.mark.parametrize("text", ["[1] is a citation", "[{x}]", '[{"role": "user"}] is a list', "[{'a': 1}]", "["])
def test_text_that_starts_like_a_list_is_text(tmp_path: Path, text: str) -> None:
    (row,) = load_prompts(table(tmp_path / "p.csv", ["prompt"], [text]))
    assert row.messages == (Message("text", text),)


@pytest.mark.parametrize("name", ["prompt", "chosen", "rejected"])
@pytest.mark.parametrize("printed", [repr(YES), " [ {'content': 'yes', 'role': 'user'}\n {'content': 'no'}]"])
def test_lists_as_python_prints_them_are_refused(tmp_path: Path, name: str, printed: str) -> None:
    cells = {"prompt": "Hi", "chosen": "yes", "rejected": "no"} | {name: printed}
    path = table(tmp_path / "p.csv", list(cells), list(cells.values()))
    with pytest.raises(DataError, match=rf"p\.csv:2: field '{name}': holds a list as Python prints it; .*json\.dumps"):
        load_preferences(path)


def test_messages_as_python_prints_them_are_refused_with_the_same_remedy(tmp_path: Path) -> None:
    path = table(tmp_path / "p.csv", ["messages"], [repr([*ASKED, *YES])])
    with pytest.raises(DataError, match=r"field 'messages': holds a list as Python prints it; .*json\.dumps"):
        load_demonstrations(path)


def test_broken_turns_are_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "p.csv", ["prompt"], [json.dumps(ASKED)[:-4]])
    with pytest.raises(DataError, match="field 'prompt': is not JSON"):
        load_prompts(path)


def test_an_empty_cell_of_an_optional_column_is_no_value(tmp_path: Path) -> None:
    path = table(
        tmp_path / "p.csv",
        ["prompt", "chosen", "rejected", "group", "margin"],
        ["Hi", "yes", "no", "", ""],
        ["Hi", "yes", "no", "g", "0.5"],
    )
    first, second = load_preferences(path)
    assert len(first.group) == 64 and first.margin == 0.0  # the prompt's hash
    assert (second.group, second.margin) == ("g", 0.5)
    path = table(tmp_path / "m.csv", ["prompt", "meta"], ["Hi", ""], ["Ho", '{"answer": 4}'])
    assert [row.meta for row in load_prompts(path)] == [{}, {"answer": 4}]


def test_a_column_named_meta_is_read_of_prompts_alone(tmp_path: Path) -> None:
    for meta in ("from reddit", "{x} is a set", '{"a": 1, "a": 2}'):
        path = table(tmp_path / "d.csv", ["prompt", "completion", "meta"], ["hi", "hello", meta])
        (row,) = load_demonstrations(path)
        assert row.response == "hello"
        with pytest.raises(DataError, match=r"field '(meta': is not JSON|a': appears twice)"):
            load_prompts(path)
    path = table(tmp_path / "p.csv", ["prompt", "chosen", "rejected", "meta"], ["hi", "yes", "no", "old"])
    assert load_preferences(path)[0].chosen == "yes"


@pytest.mark.parametrize("answer", ['[{"content": 1}]', '[{"role": "admin"}]', '[{"role": "a", "content": "b"}, 3]'])
def test_an_answer_that_is_a_list_is_text(tmp_path: Path, answer: str) -> None:
    (pair,) = load_preferences(table(tmp_path / "p.csv", ["prompt", "chosen", "rejected"], ["hi", answer, "no"]))
    assert pair.chosen == answer
    for name in ("completion", "response"):
        (row,) = load_demonstrations(table(tmp_path / f"{name}.csv", ["prompt", name], ["hi", answer]))
        assert row.response == answer
