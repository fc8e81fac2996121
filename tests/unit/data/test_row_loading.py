"""Each format is read for what it says, and each row that does not fit is refused by file, line and field."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rlhf.data.loading import load_demonstrations, load_preferences, load_prompts
from rlhf.data.schema import DemonstrationRow, Message, PreferenceRow, PromptRow
from rlhf.errors import ConfigError, DataError

from .conftest import shared_folder

CHAT = (Message("user", "Hi"), Message("assistant", "Hello"))
TURNS = [message.as_dict() for message in CHAT]


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


DEMONSTRATIONS: dict[str, tuple[dict[str, Any], tuple[Message, ...]]] = {
    "messages": ({"messages": TURNS}, CHAT),
    "messages, several turns": (
        {"messages": [{"role": "system", "content": "Be kind"}, *TURNS, *TURNS]},
        (Message("system", "Be kind"), *CHAT, *CHAT),
    ),
    "prompt and completion": (
        {"prompt": "Once upon ", "completion": "a time"},
        (Message("text", "Once upon "), Message("assistant", "a time")),
    ),
    "prompt and response": (
        {"prompt": "Hi", "response": "Hello"},
        (Message("text", "Hi"), Message("assistant", "Hello")),
    ),
    "conversational prompt and completion": ({"prompt": TURNS[:1], "completion": TURNS[1:]}, CHAT),
    "alpaca": (
        {"instruction": "Add", "input": "1 2", "output": "3"},
        (Message("user", "Add\n\n1 2"), Message("assistant", "3")),
    ),
    "alpaca without input": ({"instruction": "Hi", "input": "", "output": "Hello"}, CHAT),
    "seed task": ({"instruction": "Hi", "instances": [{"input": "", "output": "Hello"}]}, CHAT),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        CHAT,
    ),
}


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_demonstrations_are_read_from_each_format(tmp_path: Path, name: str) -> None:
    record, messages = DEMONSTRATIONS[name]
    assert load_demonstrations(write(tmp_path / "d.jsonl", record)) == [DemonstrationRow("d.jsonl:1", messages)]


HH_HEAD = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: How?"
HH_PROMPT = (*CHAT, Message("user", "How?"))
PREFERENCES: dict[str, tuple[dict[str, Any], tuple[Message, ...]]] = {
    "hh": ({"chosen": f"{HH_HEAD}\n\nAssistant: Good", "rejected": f"{HH_HEAD}\n\nAssistant: Bad"}, HH_PROMPT),
    "hh with prompt": (
        {"prompt": f"{HH_HEAD}\n\nAssistant:", "chosen": " Good", "rejected": " Bad"},
        HH_PROMPT,
    ),
    "explicit prompt": ({"prompt": "Hi", "chosen": "Good", "rejected": "Bad"}, (Message("text", "Hi"),)),
    "explicit turns": (
        {
            "prompt": TURNS[:1],
            "chosen": [{"role": "assistant", "content": "Good"}],
            "rejected": [{"role": "assistant", "content": "Bad"}],
        },
        CHAT[:1],
    ),
    "implicit turns": (
        {
            "chosen": [TURNS[0], {"role": "assistant", "content": "Good"}],
            "rejected": [TURNS[0], {"role": "assistant", "content": "Bad"}],
        },
        CHAT[:1],
    ),
    "text prompt repeated in the turns": (
        {
            "prompt": "Hi",
            "chosen": [TURNS[0], {"role": "assistant", "content": "Good"}],
            "rejected": [TURNS[0], {"role": "assistant", "content": "Bad"}],
        },
        CHAT[:1],
    ),
}


@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences_are_read_from_each_format(tmp_path: Path, name: str) -> None:
    record, prompt = PREFERENCES[name]
    (row,) = load_preferences(write(tmp_path / "p.jsonl", record))
    assert (row.prompt, row.chosen.strip(), row.rejected.strip()) == (prompt, "Good", "Bad")
    assert (row.probability, row.margin, row.weight) == (1.0, 0.0, 1.0)


def test_an_implicit_text_prompt_ends_between_words(tmp_path: Path) -> None:
    record = {"chosen": "The sky is blue.", "rejected": "The sky is black."}
    (row,) = load_preferences(write(tmp_path / "p.jsonl", record))
    assert (row.prompt, row.chosen, row.rejected) == ((Message("text", "The sky is"),), " blue.", " black.")


def test_soft_labels_margins_and_weights_are_read(tmp_path: Path) -> None:
    extras = {"probability": 0.7, "margin": 1, "weight": 0.5, "group": "g"}
    record = {"prompt": "Hi", "chosen": "a", "rejected": "b", **extras}
    (row,) = load_preferences(write(tmp_path / "p.jsonl", record))
    assert (row.probability, row.margin, row.weight, row.group) == (0.7, 1, 0.5, "g")


def test_prompts_are_read_from_prompts_demonstrations_and_preferences(tmp_path: Path) -> None:
    records = [
        {"prompt": "Hi"},
        {"text": "Hi"},
        {"prompt": TURNS[:1]},
        {"messages": TURNS},
        {"messages": TURNS[:1]},
        {"instruction": "Hi"},
        {"instruction": "Hi", "instances": [{"input": "", "output": "Hello"}]},
        {"conversations": [{"from": "human", "value": "Hi"}]},
        {"prompt": "Hi", "chosen": "a", "rejected": "b"},
        {"chosen": "Human: Hi\n\nAssistant: a", "rejected": "Human: Hi\n\nAssistant: b"},
        {"prompt": "\n\nHuman: Hi\n\nAssistant:"},
    ]
    for index, record in enumerate(records):
        (row,) = load_prompts(write(tmp_path / f"{index}.jsonl", record))
        assert [message.content for message in row.messages] == ["Hi"], record


def test_unused_fields_of_a_prompt_become_meta(tmp_path: Path) -> None:
    (row,) = load_prompts(write(tmp_path / "p.jsonl", {"id": 7, "prompt": "2+2?", "answer": "4"}))
    assert row == PromptRow("7", (Message("text", "2+2?"),), {"answer": "4"})


def test_a_preference_file_serves_as_demonstrations_when_named(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "Hi", "chosen": "a", "rejected": "b"})
    with pytest.raises(DataError, match="no known demonstration format"):
        load_demonstrations(path)
    (row,) = load_demonstrations(path, format="preference")
    assert row.response == "a"


ROWS = (
    (load_prompts, PromptRow("p", CHAT[:1], {"n": [1, None]})),
    (load_prompts, PromptRow("t", (Message("text", " Once\u2028upon"),))),
    (load_demonstrations, DemonstrationRow("d", (*CHAT, *CHAT))),
    (load_demonstrations, DemonstrationRow("t", (Message("text", "Once "), Message("assistant", "upon ")))),
    (load_preferences, PreferenceRow("c", CHAT[:1], "a", "b", 0.25, 0.5, 0.125, "g")),
)


@pytest.mark.parametrize(("load", "row"), ROWS)
def test_rows_are_written_and_read_without_loss(tmp_path: Path, load: Callable[..., Any], row: Any) -> None:
    lines = write(tmp_path / "r.jsonl", row.as_dict())
    array = tmp_path / "r.json"
    array.write_text(json.dumps([row.as_dict()], indent=2, ensure_ascii=False), encoding="utf-8")
    assert load(lines) == load(array) == [row]


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".csv", ".parquet"])
def test_each_file_type_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    records = [{"id": str(i), "prompt": f'Hi {i},\n\u2028 "x"', "completion": "é"} for i in range(700)]
    path = tmp_path / f"d{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, ["id", "prompt", "completion"])
            writer.writeheader()
            writer.writerows(records)
    elif suffix == ".json":
        path.write_text(json.dumps(records), encoding="utf-8")
    else:
        write(path, *records)
    rows = load_demonstrations(path)
    assert [(row.id, row.prompt[0].content, row.response) for row in rows] == [
        (record["id"], record["prompt"], record["completion"]) for record in records
    ]


def test_csv_cells_hold_lists_and_numbers_as_json(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("prompt,chosen,rejected,probability,margin\nHi,a,b,0.75,\n", encoding="utf-8")
    (row,) = load_preferences(path)
    assert (row.probability, row.margin) == (0.75, 0.0)
    path = tmp_path / "m.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["messages"], [json.dumps(TURNS)]])
    assert load_demonstrations(path)[0].messages == CHAT


def test_globs_lists_and_mixed_formats_are_read_in_order(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", {"messages": TURNS})
    write(tmp_path / "a.jsonl", {"prompt": "x", "completion": "y"})
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "a.jsonl", {"instruction": "x", "output": "z"})
    rows = load_demonstrations([str(tmp_path / "*.jsonl"), tmp_path / "sub" / "a.jsonl", tmp_path / "b.jsonl"])
    assert [row.response for row in rows] == ["y", "Hello", "z"]
    assert len({row.id for row in rows}) == 3
    assert len(load_demonstrations(str(tmp_path / "**" / "*.jsonl"))) == 3


def test_numbers_name_the_rows_of_their_own_file(tmp_path: Path) -> None:
    """Several files that each count from 0 are one data set; a name stands for one row everywhere."""
    rows = [{"id": 0, "prompt": "a"}, {"id": "1", "prompt": "b"}, {"id": "x", "prompt": "c"}]
    one, two = write(tmp_path / "one.jsonl", *rows), write(tmp_path / "two.jsonl", *rows[:2], {"prompt": "d"})
    found = load_prompts([one, two])
    assert [row.id for row in found] == ["0", "1", "x", "two.jsonl:0", "two.jsonl:1", "two.jsonl:3"]
    assert [row.id for row in load_prompts(two)] == ["0", "1", "two.jsonl:3"]
    with pytest.raises(DataError, match=r"two\.jsonl:3: field 'id': 'x' is taken by .*one\.jsonl:3"):
        load_prompts([one, write(two, *rows)])
    with pytest.raises(DataError, match=r"two\.jsonl:2: field 'id': 'two\.jsonl:0' is taken by .*two\.jsonl:1"):
        load_prompts([one, write(two, rows[0], rows[0])])


def test_limit_stops_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", *[{"prompt": "x", "completion": "y"}] * 5, {"broken": 1})
    assert len(load_demonstrations(path, limit=3)) == 3


@pytest.mark.parametrize(
    ("record", "candidates"),
    [
        ({"messages": TURNS, "prompt": "x", "completion": "y"}, ["messages", "prompt_completion"]),
        ({"instruction": "x", "output": "y", "instances": []}, ["alpaca", "seed_tasks"]),
        ({"conversations": [], "messages": []}, ["messages", "sharegpt"]),
    ],
)
def test_an_ambiguous_format_lists_the_candidates(
    tmp_path: Path, record: dict[str, Any], candidates: list[str]
) -> None:
    with pytest.raises(DataError, match="ambiguous") as error:
        load_demonstrations(write(tmp_path / "d.jsonl", record))
    assert all(name in str(error.value) for name in candidates)


def test_an_unknown_format_lists_what_was_seen_and_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"question, reply.*alpaca"):
        load_demonstrations(write(tmp_path / "d.jsonl", {"question": "x", "reply": "y"}))


def test_paths_that_name_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("hello")
    for path, message in (
        (tmp_path / "none.jsonl", "names no file"),
        (tmp_path / "*.jsonl", "names no file"),
        (tmp_path, "is a folder"),
        (tmp_path / "x.txt", "unknown file type"),
        ([], "no data file"),
    ):
        with pytest.raises(DataError, match=message):
            load_prompts(path)  # type: ignore[arg-type]


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {"prompt": "x"})
    for wrong in ({"format": "chatty"}, {"on_bad_row": "skip"}, {"on_bad_row": "drop"}, {"limit": 0}):
        with pytest.raises(ConfigError):
            load_prompts(path, **wrong)  # type: ignore[arg-type]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    path = write(tmp_path / "part[1].jsonl", {"prompt": "x"})
    assert len(load_prompts(path)) == 1


def test_real_files_are_read_when_they_are_there(tmp_path: Path) -> None:
    """Beside a generated file of the same shape, the published ones, with their five broken pairs."""
    pair = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: "}
    good = {**pair, "rejected": "\n\nHuman: a\n\nAssistant: c"}
    files = [(write(tmp_path / "hh.jsonl", good, pair), 1, 1)]
    published = shared_folder() / "data" / "hh_harmless.jsonl"
    if published.is_file():
        files.append((published, 1495, 5))
        assert len(load_demonstrations(published.with_name("seed_tasks.jsonl"))) == 175
    for path, num_good, num_bad in files:
        dropped = tmp_path / "dropped.jsonl"
        assert len(load_preferences(path, on_bad_row="drop", dropped_path=dropped)) == num_good
        assert dropped.read_text().count("\n") == num_bad
