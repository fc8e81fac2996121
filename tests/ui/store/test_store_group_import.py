"""Groups of imported rows and of whole files, from every format to the export; those that cannot be taken are told."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import select
from store_helpers import by_text, claim, count, people

from preference_ui import commands, queue, sampling
from preference_ui.cli import main
from preference_ui.db import Store
from preference_ui.errors import DataError, GenerationError
from preference_ui.importing import import_file
from preference_ui.items import find_items
from preference_ui.memberships import set_groups
from preference_ui.models import Item, Prompt
from preference_ui.projects import create_project
from preference_ui.records import read_candidates
from preference_ui.sampling import SampleOrder, prompts_in_need, sample_into

PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
TREE = {"prompt": {"text": "q", "role": "prompter", "replies": [
    {"text": "a", "role": "assistant"}, {"text": "b", "role": "assistant"}]}, "message_tree_id": "1"}  # fmt: skip
FLAT = [{"message_id": "1", "parent_id": None, "role": "prompter", "text": "q", "group": " da "},
        {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "a"},
        {"message_id": "3", "parent_id": "1", "role": "assistant", "text": "b"}]  # fmt: skip


def _jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _row(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"question {number}", "responses": [f"{number}.a", f"{number}.b"], **more}


def _groups(store: Store) -> dict[str, str]:
    with store.read() as session:
        rows = session.execute(select(Prompt.messages_json, Item.group).join(Item, Item.prompt_id == Prompt.id))
        return {json.loads(messages)[-1]["content"]: group for messages, group in rows}


@pytest.mark.parametrize(
    ("rows", "groups"),
    [
        ([_row(1, group=" da "), _row(2, group=""), _row(3, group=None), _row(4)], ["da", "", "", ""]),
        ([{"prompt": "q", "response": "a", "group": "da"}, {"prompt": "q", "response": "b", "group": "da"}], ["da"]),
        ([PAIR | {"group": "da"}], ["da"]),
        # What preferences that were exported carry: rows of one prompt weigh together.
        ([PAIR | {"group": "0f" * 32}, PAIR | {"prompt": "p"}], ["", ""]),
        ([{k: f"\n\nHuman: q\n\nAssistant: {a}" for k, a in (("chosen", "x"), ("rejected", "y"))} | {"group": "da"}],
         ["da"]),
        ([TREE | {"group": "da"}], ["da"]),
        (FLAT, ["da"]),
    ],
    ids=["native", "a response per row", "trl", "exported", "hh", "tree", "flat"],
)  # fmt: skip
def test_every_format_takes_a_rows_group(rows: list[dict[str, Any]], groups: list[str], tmp_path: Path) -> None:
    found = read_candidates(_jsonl(tmp_path / "r.jsonl", *rows))
    assert [candidate.spec.group for candidate in found.candidates] == groups


def test_tables_take_it_too(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "response_1": "a", "response_2": "b", "group": group} for n, group in
            enumerate(("da", "", "zh"))]  # fmt: skip
    with (tmp_path / "r.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(
        pa.Table.from_pylist([row | {"group": row["group"] or None} for row in rows]), tmp_path / "r.parquet"
    )
    for name in ("r.csv", "r.parquet"):
        assert [c.spec.group for c in read_candidates(tmp_path / name).candidates] == ["da", "", "zh"]


@pytest.mark.parametrize("group", [7, True, ["da"], "x" * 65, "a,b", "a\u0007b"])
def test_what_is_no_group_is_refused_by_its_place(group: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"r\.jsonl:2: field 'group'"):
        read_candidates(_jsonl(tmp_path / "r.jsonl", _row(1), _row(2, group=group)))


def test_responses_of_one_prompt_are_for_one_group(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "response": text, "group": group} for text, group in (("a", "da"), ("b", ""))]
    with pytest.raises(DataError, match=r"r\.jsonl:2: field 'group' is another one than at .*r\.jsonl:1"):
        read_candidates(_jsonl(tmp_path / "r.jsonl", *rows))


def test_a_file_has_one_group_or_its_rows_have_theirs(store: Store, tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "r.jsonl", _row(1), _row(2, group="da"))
    create_project(store, "mine")
    for group, what in (
        ("zh", r"r\.jsonl:2: field 'group' is 'da', and --group 'zh'"),
        ("a,b", "--group: 'a,b' holds"),
    ):
        with pytest.raises(DataError, match=what):
            import_file(store, "mine", path, group=group)
        with pytest.raises(DataError, match=what):
            commands.prefs_import(store, "new", [path], group=group)
    assert count(store, Item) == 0
    assert import_file(store, "mine", path, group="da").left_out == []
    assert _groups(store) == {"question 1": "da", "question 2": "da"}
    # Tasks that are there keep their group, and the report says so.
    other = _jsonl(tmp_path / "other.jsonl", _row(1), _row(2, group="zh"), _row(3), _row(3, group="da"))
    report = import_file(store, "mine", other)
    assert (report.num_new, _groups(store)) == (1, {"question 1": "da", "question 2": "da", "question 3": ""})
    assert [line.split("other.jsonl:")[1] for line in report.left_out] == [
        "2: field 'group': the project has this task in the group 'da', and it stays so",
        "4: field 'group': the project has this task in no group, and it stays so",
    ]


def test_groups_are_found_and_exported_where_topics_are(store: Store, tmp_path: Path) -> None:
    create_project(store, "mine")
    import_file(store, "mine", _jsonl(tmp_path / "r.jsonl", _row(1, topic="t"), _row(2, group="medical")))
    assert [line.group for line in find_items(store, "mine").lines] == ["", "medical"]
    assert [line.opening for line in find_items(store, "mine", text="MEDI").lines] == ["question 2"]
    (ann,) = people(store, "ann")
    set_groups(store, "mine", ann, ("medical",), actor="lead")
    for _ in range(2):
        task = claim(store, ann, "mine")
        queue.submit(store, ann, task.lease_id, by_text(task))
    commands.prefs_export(store, "mine", tmp_path / "votes.jsonl", file_format="judgments")
    lines = [json.loads(line) for line in (tmp_path / "votes.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["topic"], line["group"]) for line in lines] == [("t", ""), ("", "medical")]


def test_the_command_line_takes_a_group_for_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, place = _jsonl(tmp_path / "r.jsonl", _row(1)), str(tmp_path / "s.sqlite")
    assert main(["--store", place, "import", "mine", str(path), "--group", "da"]) == 0
    assert main(["groups", "mine", "--store", place]) == 0
    out = capsys.readouterr().out
    assert "nobody can take: da" in out and "people with groups in mine" in out
    with pytest.raises(SystemExit):
        main(["import", "--help"])
    assert "a row with another group is an error" in " ".join(capsys.readouterr().out.split())


def test_sampling_keeps_the_group_of_its_prompts(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_project(store, "mine")
    import_file(store, "mine", _jsonl(tmp_path / "r.jsonl", _row(1), _row(2, group="da"), _row(3, group="da")))
    rows = prompts_in_need(store, "mine", "runs/sft", 10)
    assert {row["messages"][0]["content"]: row.get("group") for row in rows} == {
        "question 1": None, "question 2": "da", "question 3": "da",
    }  # fmt: skip
    # A group that no import takes is refused before anything is drawn.
    bad = _jsonl(tmp_path / "bad.jsonl", {"prompt": "q"}, {"prompt": "p", "group": 5})
    drawn: list[list[str]] = []

    class Failed:
        returncode = 3

    def run(command: list[str], **_: object) -> Failed:
        drawn.append(command)
        return Failed()

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DataError, match=r"bad\.jsonl:2: field 'group'"):
        sample_into(store, "mine", SampleOrder("runs/sft", tmp_path / "out", str(bad)))
    assert drawn == []
    with pytest.raises(GenerationError):
        sample_into(store, "mine", SampleOrder("runs/sft", tmp_path / "out"))
    written = next(word for word in drawn[0] if word.startswith("prompts="))
    assert written.endswith(sampling.PROMPTS_FILE)
    lines = Path(written.removeprefix("prompts=")).read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line).get("group", "") for line in lines) == ["", "da", "da"]
