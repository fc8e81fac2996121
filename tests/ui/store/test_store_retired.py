"""What a lead has condemned trains nothing, and answers keep their day."""

from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from store_helpers import Clock, MakeProject, by_text, claim, item_of, lease_row, people, undo

from preference_ui import commands, queue
from preference_ui.backup import verify
from preference_ui.cli import build_parser
from preference_ui.db import Store
from preference_ui.errors import AlreadyDecided, DataError, StaleVote
from preference_ui.export import export_preferences, read_snapshot
from preference_ui.items import change_item
from preference_ui.models import DatasetVersion
from preference_ui.overview import overview
from preference_ui.reviews import Seen, decide, entry_of, inbox
from preference_ui.set_aside import restore, set_aside
from preference_ui.versions import freeze, load_version


def _vote(store: Store, who: str, *, worst_first: bool = False) -> str:
    task = claim(store, who)
    queue.submit(store, who, task.lease_id, by_text(task, worst_first=worst_first))
    return task.lease_id


def test_votes_on_retired_tasks_are_in_no_export_unless_asked_for(
    store: Store, make_project: MakeProject, tmp_path: Path, clock: Clock
) -> None:
    make_project(3, num_responses=2, repeat_rate=1.0, repeat_after_seconds=5)
    (ann,) = people(store, "ann")
    first = _vote(store, ann)
    clock.advance(1)
    _vote(store, ann)
    clock.advance(10)
    task = claim(store, ann)
    assert item_of(store, task.lease_id).kind == "repeat"
    queue.submit(store, ann, task.lease_id, by_text(task))
    with store.read() as session:
        of_first = {j.item_id for j in read_snapshot(session, "helpline").judgments
                    if first in (j.lease_id, j.repeat_of_lease_id)}  # fmt: skip
    everything = freeze(store, "helpline")
    assert len(load_version(store, "helpline", 1)) == 2

    change_item(store, "helpline", item_of(store, first).id, actor="lead", retired=True)
    assert len(export_preferences(store, "helpline")) == 1
    assert len(export_preferences(store, "helpline", with_retired=True)) == 2
    for name, options, count in (("out", {}, 3 - len(of_first)), ("in", {"with_retired": True}, 3)):
        path = tmp_path / f"{name}.jsonl"
        commands.prefs_export(store, "helpline", path, file_format="judgments", **options)
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        assert len(lines) == count and any(line["retired"] for line in lines) is bool(options)
    second, third = freeze(store, "helpline"), freeze(store, "helpline", with_retired=True)
    assert (second.num_rows, third.num_rows) == (1, 2)
    assert (second.num_judgments, third.num_judgments) == (3 - len(of_first), 3)
    manifest = json.loads((second.path / "manifest.json").read_text("utf-8"))["options"]
    assert manifest["with_retired"] is False and set(manifest["retired_left_out"]) == of_first
    with store.read() as session:
        noted = session.scalars(select(DatasetVersion.options_json).order_by(DatasetVersion.number)).all()
    assert [json.loads(text)["with_retired"] for text in noted] == [False, False, True]

    # Whatever is retired or taken back later: a version whose files are lost gives the same rows.
    rows = [load_version(store, "helpline", number) for number in (1, 2, 3)]
    for version in (everything, second, third):
        (version.path / "preferences.jsonl").unlink()
    assert [load_version(store, "helpline", number) for number in (1, 2, 3)] == rows
    change_item(store, "helpline", item_of(store, first).id, actor="lead", retired=False)
    assert [load_version(store, "helpline", number) for number in (1, 2, 3)] == rows
    assert len(export_preferences(store, "helpline")) == 2
    for words in (["export", "helpline", "f"], ["freeze", "helpline"]):
        assert build_parser().parse_args(words).with_retired is False
        assert build_parser().parse_args([*words, "--with-retired"]).with_retired is True


def test_a_decision_sets_one_vote_aside_and_asks_for_another(
    store: Store, make_project: MakeProject, clock: Clock
) -> None:
    make_project(1, overlap=2)
    ann, bo, cy, dee = people(store, "ann", "bo", "cy", "dee")
    (lead,) = people(store, "lead")
    right, wrong = _vote(store, ann), _vote(store, bo, worst_first=True)
    (entry,) = inbox(store, "helpline")
    votes = {vote.handle: vote.judgment_id for vote in entry.votes}
    clock.advance(1)
    with pytest.raises(DataError, match="a reason is needed"):
        decide(store, entry.item_id, "rater_error", " ", decided_by=lead, aside=[votes["bo"]])
    for stale in ("no-such-vote", votes["bo"]):
        if stale == votes["bo"]:
            again = queue.recall(store, bo, wrong)
            queue.submit(store, bo, wrong, by_text(again, worst_first=True), again.revision)
        with pytest.raises(StaleVote, match="changed meanwhile"):
            decide(store, entry.item_id, "rater_error", "upside down", decided_by=lead, aside=[stale])
    assert (lease_row(store, wrong).state, item_of(store, wrong).done) == ("done", 2)

    entry = entry_of(store, "helpline", entry.item_id)
    assert entry is not None
    votes = {vote.handle: vote.judgment_id for vote in entry.votes}
    clock.advance(1)
    decide(store, entry.item_id, "rater_error", "upside down", decided_by=lead, aside=[votes["bo"]], one_more=True,
           seen=Seen(None, 0))  # fmt: skip
    with pytest.raises(AlreadyDecided):
        decide(store, entry.item_id, "rater_error", "", decided_by=lead, one_more=True, seen=Seen(None, 0))
    item = item_of(store, right)
    assert (item.state, item.done, item.needed, item.base_needed) == ("open", 1, 3, 2)
    assert inbox(store, "helpline") == []
    with store.read() as session:
        assert [j.handle for j in read_snapshot(session, "helpline").judgments] == ["ann"]
    for who in (cy, dee):
        _vote(store, who)
    assert item_of(store, right).state == "done"
    assert queue.claim(store, "helpline", bo) is None
    assert restore(store, "helpline", bo, actor=lead) == 1
    assert lease_row(store, wrong).state == "surplus"
    assert verify(store).ok


def test_with_a_late_vote_one_more_is_there_at_once(store: Store, make_project: MakeProject, clock: Clock) -> None:
    make_project(1, lease_seconds=100)
    ann, bo, lead = people(store, "ann", "bo", "lead")
    late = claim(store, ann)
    clock.advance(101)
    quick = _vote(store, bo)
    assert not queue.submit(store, ann, late.lease_id, by_text(late)).counted
    decide(store, item_of(store, quick).id, "subjective", "", decided_by=lead, one_more=True)
    item = item_of(store, quick)
    assert (item.state, item.done, item.needed, lease_row(store, late.lease_id).state) == ("done", 2, 2, "done")
    assert verify(store).ok


def test_answers_keep_their_day(store: Store, make_project: MakeProject, clock: Clock) -> None:
    """Set aside and restored, changed, undone and given anew: only the last is an answer of its day."""
    make_project(3)
    (ann,) = people(store, "ann")
    day = clock.now.date()
    leases = [_vote(store, ann) for _ in range(3)]

    def days() -> dict[date, int]:
        return {when: count for when, count in overview(store, "helpline").per_day if count}

    clock.advance(10 * 86_400)
    set_aside(store, "helpline", ann, "by mistake", actor="lead")
    assert days() == {}
    restore(store, "helpline", ann, actor="lead")
    assert days() == {day: 3} and overview(store, "helpline").today == 0
    clock.advance(86_400)
    again = queue.recall(store, ann, leases[0])
    queue.submit(store, ann, leases[0], by_text(again, worst_first=True), again.revision)
    assert days() == {day: 3}
    with store.read() as session:
        record = next(j for j in read_snapshot(session, "helpline").judgments if j.lease_id == leases[0])
    assert (record.answered.date(), record.created) == (day, clock.now)
    task = undo(store, ann)
    queue.submit(store, ann, task.lease_id, by_text(task), task.revision)
    assert days() == {day: 2, day + timedelta(days=11): 1}
    # Who was set aside and answers anew answers now.
    set_aside(store, "helpline", ann, "read the guideline", actor="lead")
    clock.advance(86_400)
    _vote_again(store, ann)
    assert days() == {day + timedelta(days=12): 1}


def _vote_again(store: Store, who: str) -> None:
    task = claim(store, who)
    assert task.revision > 1
    queue.submit(store, who, task.lease_id, by_text(task), task.revision)


def test_votes_on_retired_tasks_are_work_and_no_measure_of_quality(store: Store, make_project: MakeProject) -> None:
    make_project(2, num_responses=2, overlap=2)
    ann, bo = people(store, "ann", "bo")
    kept = [item_of(store, _vote(store, ann)).id for _ in range(2)]
    for _ in range(2):
        task = claim(store, bo)
        worst_first = item_of(store, task.lease_id).id == kept[0]
        queue.submit(store, bo, task.lease_id, by_text(task, worst_first=worst_first))
    before = commands.report_of(store, "helpline")
    assert before.items == 2 and before.pair_agreement.value == 0.5

    change_item(store, "helpline", kept[0], actor="lead", retired=True)
    after = commands.report_of(store, "helpline")
    assert after.items == 1 and after.pair_agreement.value == 1.0
    assert after.kappa.keys() == before.kappa.keys() and after.topics != before.topics
    assert {r.handle: (r.votes, r.agreement_with_others) for r in after.raters} == {"ann": (2, 1.0), "bo": (2, 1.0)}
    assert after.votes == 4, "the work was done all the same"
