"""A file of tasks is looked at whole before anything is stored, and its errors read as the command line's."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from store_helpers import count

from preference_ui.db import Store
from preference_ui.errors import DataError
from preference_ui.importing import import_file
from preference_ui.models import Event, Item, Prompt
from preference_ui.people import find_annotator
from preference_ui.projects import create_project
from preference_ui.settings import ProjectSettings
from preference_ui.survey import survey_file


def _row(number: int, **more: object) -> str:
    return json.dumps({"prompt": f"question {number}", "responses": [f"{number}.0", f"{number}.1"]} | more)


WRONG = (
    "{oops",
    "[1]",
    json.dumps({"responses": ["a", "b"]}),
    _row(4, responses=["a"]),
    _row(5, responses=["a", " "]),
    _row(6, responses=["a", "a"]),
    _row(7, prompt=7),
    _row(8, tiers=5),
    _row(9, tiers=[[0], [7]]),
    _row(10, gold_tiers=[["a"], [0]]),
    _row(11, priority="soon"),
)


def test_every_error_is_told_at_once_as_an_import_tells_it(store: Store, tmp_path: Path) -> None:
    create_project(store, "helpline")
    file, single = tmp_path / "tasks.jsonl", tmp_path / "single.jsonl"
    file.write_text("\n".join([*WRONG, _row(0), _row(1, gold_tiers=[[0], [1]]), _row(2, tiers=[[1], [0]])]), "utf-8")
    events = count(store, Event)
    found = survey_file(store, "helpline", file, shown="mine.jsonl")
    told = []
    for number, line in enumerate(WRONG):
        single.write_text("\n" * number + line, "utf-8")
        with pytest.raises(DataError) as caught:
            import_file(store, "helpline", single, shown="mine.jsonl")
        told.append(str(caught.value))
    assert found.problems == told
    assert [text.partition(": ")[0] for text in told] == [f"mine.jsonl:{n}" for n in range(1, len(WRONG) + 1)]
    assert (found.num_records, len(found.tasks), found.num_gold, found.num_rankings) == (12, 3, 1, 1)
    assert count(store, Item) == 1, "the last import: its task was stored before its ranking was refused"
    assert count(store, Event) > events


def test_looking_at_a_file_stores_nothing(store: Store, tmp_path: Path) -> None:
    create_project(store, "helpline")
    events = count(store, Event)
    file = tmp_path / "tasks.csv"
    file.write_text("prompt,response_1,response_2\nhello,a,b\nhello,,b\n", "utf-8")
    found = survey_file(store, "helpline", file)
    assert [task.spec.responses[0].text for task in found.tasks] == ["a"]
    assert found.problems == [f"{file}:3: has 1 responses; an item takes 2 to 9"]
    assert (count(store, Event), count(store, Item), count(store, Prompt)) == (events, 0, 0)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jsonl", b"", "a.jsonl: holds no records"),
        ("a.jsonl", b"\xff\xfe", "a.jsonl: is not UTF-8"),
        ("a.json", b"{", "a.json: cannot be read"),
        ("a.json", b"[1]", "a.json[0]: expected an object"),
        ("a.txt", b"x", "a.txt: unknown kind of file"),
    ],
)
def test_files_that_cannot_be_read_at_all(store: Store, tmp_path: Path, name: str, data: bytes, words: str) -> None:
    create_project(store, "helpline")
    (tmp_path / name).write_bytes(data)
    found = survey_file(store, "helpline", tmp_path / name, shown=name)
    assert len(found.problems) == 1 and found.problems[0].startswith(words)
    assert found.tasks == []


def test_rankings_that_the_project_does_not_take_are_told_before(store: Store, tmp_path: Path) -> None:
    create_project(store, "strict", settings=ProjectSettings(allow_ties=False))
    file = tmp_path / "tied.jsonl"
    file.write_text(_row(1, tiers=[[0, 1]]), "utf-8")
    (problem,) = survey_file(store, "strict", file).problems
    with pytest.raises(DataError, match="allows no ties") as caught:
        import_file(store, "strict", file)
    assert problem == str(caught.value)


def test_pairs_that_fit_no_task_are_left_out_and_told(store: Store, tmp_path: Path) -> None:
    create_project(store, "helpline")
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "p", "chosen": "a", "rejected": "a"}, {"prompt": "p", "chosen": "a", "rejected": "b"}]
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    found = survey_file(store, "helpline", file, shown="pairs.jsonl")
    assert found.left_out == ["pairs.jsonl:1: both responses are the same"]
    assert (len(found.tasks), found.num_rankings, found.problems) == (1, 1, [])
    report = import_file(store, "helpline", file, shown="pairs.jsonl")
    assert report.left_out == found.left_out
    assert find_annotator(store, "import:pairs.jsonl") is not None
    with store.read() as session:
        assert {row.source for row in session.query(Prompt)} == {"pairs.jsonl:2"}, "the place is that of the file shown"


def test_an_import_tells_how_far_it_is(store: Store, tmp_path: Path) -> None:
    create_project(store, "helpline")
    file = tmp_path / "many.jsonl"
    file.write_text("\n".join(_row(number) for number in range(120)), "utf-8")
    heard: list[tuple[int, int]] = []
    import_file(store, "helpline", file, progress=lambda done, total: heard.append((done, total)))
    assert heard[-1] == (120, 120)
    assert len(heard) > 1 and all(later[0] - before[0] <= 50 for before, later in pairwise(heard))
