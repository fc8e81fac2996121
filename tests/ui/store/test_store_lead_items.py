"""The lead's list of items, and votes that are set aside and restored."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from sqlalchemy import select
from store_helpers import MakeProject, by_text, claim, item_of, item_spec, lease_row, people

from preference_ui import commands, queue
from preference_ui.backup import verify
from preference_ui.cli import build_parser
from preference_ui.db import Store
from preference_ui.errors import DataError, StaleItem
from preference_ui.events import tail
from preference_ui.export import export_preferences
from preference_ui.items import PAGE_SIZE, change_item, find_items
from preference_ui.models import Event
from preference_ui.projects import add_items
from preference_ui.set_aside import VoteCounts, restore, set_aside, vote_counts
from preference_ui.versions import freeze, get_version, load_version


def test_items_are_found_by_words_topic_and_state_a_page_at_a_time(store: Store, make_project: MakeProject) -> None:
    project = make_project(PAGE_SIZE + 3)
    add_items(store, project.id, [item_spec(1000, topic="100%_\\sure"), item_spec(1001, gold_tiers=((0,), (1, 2)))])
    first, second = find_items(store, "helpline"), find_items(store, "helpline", page=2)
    assert (first.total, first.num_pages, len(first.lines), len(second.lines)) == (PAGE_SIZE + 5, 2, PAGE_SIZE, 5)
    assert [line.opening for line in (*first.lines, *second.lines)][:2] == ["question 0", "question 1"]
    assert [line.opening for line in find_items(store, "helpline", text="QUESTION 1").lines] == [
        f"question {n}" for n in (1, *range(10, 20), 1000, 1001)
    ]
    assert [line.topic for line in find_items(store, "helpline", text="0%_\\s").lines] == ["100%_\\sure"]
    for markup in ("role", "user", "content", '"'):
        assert find_items(store, "helpline", text=markup).total == 0
    assert [line.kind for line in find_items(store, "helpline", state="gold").lines] == ["gold"]
    assert find_items(store, "helpline", state="done").total == 0
    with pytest.raises(DataError, match="is not one of all, open"):
        find_items(store, "helpline", state="lost")


def test_an_item_leaves_the_queue_and_comes_back(store: Store, make_project: MakeProject) -> None:
    make_project(2)
    (ann,) = people(store, "ann")
    plain, urgent = (line.item_id for line in find_items(store, "helpline").lines)
    change_item(store, "helpline", urgent, actor="lead", priority=2.0)
    task = claim(store, ann)
    assert item_of(store, task.lease_id).id == urgent
    queue.submit(store, ann, task.lease_id, by_text(task))
    for item in (plain, urgent):
        change_item(store, "helpline", item, actor="lead", retired=True)
    assert queue.claim(store, "helpline", ann) is None
    assert {line.item_id for line in find_items(store, "helpline", state="retired").lines} == {plain, urgent}
    with store.read() as session:
        before = len(tail(session, 0))
    change_item(store, "helpline", urgent, actor="lead", retired=True, priority=2.0)
    with store.read() as session:
        assert len(tail(session, 0)) == before
    for item in (plain, urgent):
        change_item(store, "helpline", item, actor="lead", retired=False)
    assert [line.state for line in find_items(store, "helpline").lines] == ["open", "done"]
    assert claim(store, ann).prompt[0].content == "question 0"
    for wrong in ({"item_id": "nowhere"}, {"item_id": plain, "priority": float("nan")}):
        with pytest.raises(DataError):
            change_item(store, "helpline", actor="lead", **wrong)
    assert verify(store).ok


def test_a_change_from_an_older_view_is_refused(store: Store, make_project: MakeProject) -> None:
    make_project(1)
    (line,) = find_items(store, "helpline").lines
    change_item(store, "helpline", line.item_id, actor="one", retired=True, seen=(0.0, False))
    for change in ({"priority": 1.0}, {"retired": False}):
        with pytest.raises(StaleItem, match="changed meanwhile"):
            change_item(store, "helpline", line.item_id, actor="other", seen=(0.0, False), **change)
    change_item(store, "helpline", line.item_id, actor="other", priority=1.0, seen=(0.0, True))
    (line,) = find_items(store, "helpline").lines
    assert (line.state, line.priority) == ("retired", 1.0)


def test_votes_set_aside_leave_everything_but_frozen_versions(store: Store, make_project: MakeProject) -> None:
    project = make_project(3, num_responses=2, overlap=1, flags=("pii",))
    ann, bo = people(store, "ann", "bo")
    tasks = []
    for number in range(3):
        task = claim(store, ann)
        vote = replace(by_text(task), rationale=f"reason {number}", flags=[(0, "pii")], edits={0: f"better {number}"})
        queue.submit(store, ann, task.lease_id, vote)
        tasks.append(task)
        if number == 1:
            freeze(store, "helpline")
    frozen, rows = load_version(store, "helpline", 1), export_preferences(store, "helpline")
    assert vote_counts(store, "helpline", ann) == VoteCounts(3, 0)
    assert set_aside(store, "helpline", ann, "answered at random", actor="lead") == 3
    assert set_aside(store, "helpline", ann, "again", actor="lead") == 0
    assert vote_counts(store, "helpline", ann) == VoteCounts(0, 3)
    assert export_preferences(store, "helpline") == []
    assert commands.report_of(store, "helpline").votes == 0
    counts = queue.progress(store, "helpline", ann)
    assert (counts.mine_total, counts.project_done, counts.project_total) == (0, 0, 3)
    assert queue.history(store, ann, "helpline") == []
    # The version reads the chain up to its own event, files or none.
    assert load_version(store, "helpline", 1) == frozen
    (get_version(store, "helpline").path / "preferences.jsonl").unlink()
    assert load_version(store, "helpline", 1) == frozen
    with store.read() as session:
        notes = session.scalars(select(Event.payload_json).where(Event.action == "judgment.set_aside")).all()
    assert {json.loads(note)["reason"] for note in notes} == {"answered at random"}
    assert sum(json.loads(note)["frozen_in"] is not None for note in notes) == 2
    assert verify(store).ok

    # Somebody else is asked, and one task is taken before its vote comes back: that one is kept as a late vote.
    taken = claim(store, bo)
    queue.submit(store, bo, taken.lease_id, by_text(taken))
    assert restore(store, "helpline", ann, actor="lead") == 3
    assert restore(store, "helpline", ann, actor="lead") == 0
    states = {item_of(store, t.lease_id).id: lease_row(store, t.lease_id).state for t in tasks}
    assert states.pop(item_of(store, taken.lease_id).id) == "surplus" and set(states.values()) == {"done"}
    assert queue.claim(store, "helpline", bo) is None
    again = export_preferences(store, "helpline")
    assert {(r.chosen, r.rejected) for r in again} == {(r.chosen, r.rejected) for r in rows}
    with store.read() as session:
        restored = commands.read_snapshot(session, project.id).judgments
    assert {(r.rationale, r.flags[0][1], r.edits[0][1]) for r in restored if r.annotator_id == ann} == {
        (f"reason {n}", "pii", f"better {n}") for n in range(3)
    }
    assert verify(store).ok


def test_who_keeps_an_open_account_is_asked_again(store: Store, make_project: MakeProject) -> None:
    make_project(1)
    (ann,) = people(store, "ann")
    task = claim(store, ann)
    queue.submit(store, ann, task.lease_id, by_text(task))
    freeze(store, "helpline")
    set_aside(store, "helpline", ann, "misread the guideline", actor="lead")
    again = claim(store, ann)
    assert (again.lease_id, again.revision, again.draft) == (task.lease_id, 3, None)
    assert restore(store, "helpline", ann, actor="lead") == 0
    queue.submit(store, ann, again.lease_id, by_text(again, worst_first=True), again.revision)
    assert vote_counts(store, "helpline", ann) == VoteCounts(1, 0)
    assert verify(store).ok


def test_the_command_sets_aside_and_restores(store: Store, make_project: MakeProject) -> None:
    make_project(2)
    (ann,) = people(store, "ann")
    for _ in range(2):
        task = claim(store, ann)
        queue.submit(store, ann, task.lease_id, by_text(task))
    table = commands.prefs_set_aside(store, "helpline", "ann", reason="clicks")
    assert table.rows == [("ann", "2")] and "--undo" in table.notes[0]
    assert commands.prefs_set_aside(store, "helpline", "ann", undo=True).rows == [("ann", "2")]
    with pytest.raises(DataError, match="no annotator 'nobody'"):
        commands.prefs_set_aside(store, "helpline", "nobody", reason="x")
    with pytest.raises(DataError, match="--reason"):
        commands.prefs_set_aside(store, "helpline", "ann")
    words = build_parser().parse_args(["set-aside", "helpline", "ann", "--reason", "clicks"])
    assert (words.project, words.handle, words.reason, words.undo) == ("helpline", "ann", "clicks", False)
