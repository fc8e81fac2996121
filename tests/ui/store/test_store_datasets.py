"""Versions as a lead sees them, what may be taken away of them, and that nothing is frozen twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from store_helpers import MakeProject, by_text, claim, people

from preference_ui import commands, queue
from preference_ui.datasets import VERSION_FILES, version_file, version_lines
from preference_ui.db import Store
from preference_ui.errors import DataError, WordedDataError
from preference_ui.hints import training_on
from preference_ui.items import change_item, find_items
from preference_ui.ranking import PairOptions
from preference_ui.versions import freeze, get_version


def _vote(store: Store, annotator: str) -> None:
    task = claim(store, annotator)
    queue.submit(store, annotator, task.lease_id, by_text(task))


def test_a_version_tells_who_froze_what(store: Store, make_project: MakeProject) -> None:
    make_project(3)
    ann, bea = people(store, "ann", "bea")
    assert version_lines(store, "helpline") == []
    for who in (ann, ann, bea):
        _vote(store, who)
    freeze(store, "helpline", PairOptions(votes="each", ties="drop"), include_edits=False, actor=bea)
    voted = next(line for line in find_items(store, "helpline").lines if line.done)
    change_item(store, "helpline", voted.item_id, actor="lead", retired=True)
    freeze(store, "helpline", actor="command line")
    freeze(store, "helpline", PairOptions(reliability={ann: 0.5}), with_retired=True)
    third, second, first = version_lines(store, "helpline")
    assert (first.number, first.actor, first.num_judgments, first.num_rows) == (1, "bea", 3, 9)
    assert (first.votes, first.ties, first.has_edits, first.is_weighted, first.num_retired) == (
        "each", "drop", False, False, 0,
    )  # fmt: skip
    assert first.num_tasks == len({line.item_id for line in find_items(store, "helpline").lines if line.done})
    assert (second.actor, second.num_retired, second.has_edits) == ("command line", 1, True)
    assert (second.votes, second.ties) == ("soft", "soft")
    assert (third.num_retired, third.is_weighted, third.actor) == (None, True, "system")
    assert third.sha256 == get_version(store, "helpline", 3).sha256


def test_nothing_new_is_frozen_only_where_it_is_wanted(store: Store, make_project: MakeProject) -> None:
    make_project(3)
    make_project(3, name="other")
    (ann,) = people(store, "ann")
    with pytest.raises(WordedDataError, match="no preferences to freeze yet"):
        freeze(store, "helpline", only_new=True)
    _vote(store, ann)
    assert freeze(store, "helpline", only_new=True).number == 1
    task = queue.claim(store, "other", ann)
    assert task is not None
    queue.submit(store, ann, task.lease_id, by_text(task))
    with pytest.raises(WordedDataError, match="v1 of project 'helpline' holds these votes") as caught:
        freeze(store, "helpline", only_new=True)
    assert (caught.value.key, caught.value.values) == ("nothing_new", {"number": 1})
    assert freeze(store, "helpline", PairOptions(ties="drop"), only_new=True).number == 2
    weighted = commands.pair_options(store, "helpline", "soft", "soft", True)
    assert freeze(store, "helpline", weighted, only_new=True).number == 3
    with pytest.raises(WordedDataError, match="v3"):
        freeze(store, "helpline", commands.pair_options(store, "helpline", "soft", "soft", True), only_new=True)
    _vote(store, ann)
    assert freeze(store, "helpline", weighted, only_new=True).number == 4
    assert freeze(store, "helpline", weighted).number == 5, "the command line freezes whenever it is told to"


def test_files_of_a_version(store: Store, make_project: MakeProject) -> None:
    make_project(2)
    (ann,) = people(store, "ann")
    _vote(store, ann)
    version = freeze(store, "helpline")
    for name in VERSION_FILES:
        assert version_file(store, "helpline", 1, name) == version.path / name
    for name in ("../manifest.json", "README.md", "", "/etc/passwd", "manifest.json/"):
        with pytest.raises(DataError, match="is not one of"):
            version_file(store, "helpline", 1, name)
    with pytest.raises(DataError, match="has no version v2"):
        version_file(store, "helpline", 2, "manifest.json")
    for spoil in (lambda path: path.write_bytes(b"{}\n"), Path.unlink):
        spoil(version.path / "preferences.jsonl")
        rebuilt = version_file(store, "helpline", 1, "preferences.jsonl")
        assert isinstance(rebuilt, bytes) and hashlib.sha256(rebuilt).hexdigest() == version.sha256
    (version.path / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest\.json of version v1 is lost"):
        version_file(store, "helpline", 1, "manifest.json")


def test_versions_of_an_earlier_program_are_listed(
    store: Store, make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_project(1)
    (ann,) = people(store, "ann")
    _vote(store, ann)
    real = json.loads

    def earlier(text: str) -> object:
        values = real(text)
        for late in ("num_tasks", "with_retired", "retired_left_out"):
            values.pop(late, None)
        return values

    freeze(store, "helpline")
    monkeypatch.setattr("preference_ui.datasets.json.loads", earlier)
    (line,) = version_lines(store, "helpline")
    assert (line.num_tasks, line.num_retired, line.num_rows) == (None, None, 3)


def test_the_line_that_trains_survives_a_shell(store: Store) -> None:
    assert training_on(store, "store:helpline@v3").endswith(" data.train=store:helpline@v3")
    assert training_on(store, "store:our $HOME@v1").endswith(" 'data.train=store:our $HOME@v1'")
