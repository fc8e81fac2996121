"""Undo takes back the answer that is meant, once; and changed answers carry the guideline of their day."""

from __future__ import annotations

import random

import pytest
from sqlalchemy import select, update
from store_helpers import Clock, MakeProject, by_text, claim, count, item_spec, lease_row, people, undo

from preference_ui import migrations, queue
from preference_ui.backup import verify
from preference_ui.db import Store
from preference_ui.errors import FrozenAnswer, LateAnswer, LeaseError, TaskTaken
from preference_ui.guidelines import publish_guideline
from preference_ui.models import Judgment, Lease
from preference_ui.projects import add_items, create_project
from preference_ui.versions import freeze


def _answer(store: Store, who: str, project: str = "helpline") -> str:
    task = claim(store, who, project)
    queue.submit(store, who, task.lease_id, by_text(task))
    return task.lease_id


def _change(store: Store, who: str, lease: str) -> None:
    task = queue.recall(store, who, lease)
    queue.submit(store, who, lease, by_text(task, worst_first=True), task.revision)


def test_a_skip_is_as_old_as_its_button(store: Store, make_project: MakeProject, clock: Clock) -> None:
    """Claimed at 0, an old answer changed at 180, skipped at 300: the skip is the newest."""
    make_project(3, max_skips=5)
    (ann,) = people(store, "ann")
    old = _answer(store, ann)
    clock.advance(60)
    task = claim(store, ann)
    clock.advance(180)
    _change(store, ann, old)
    clock.advance(120)
    queue.skip(store, ann, task.lease_id, "unclear")
    assert undo(store, ann).lease_id == task.lease_id
    assert (lease_row(store, task.lease_id).state, lease_row(store, task.lease_id).skip_reason) == ("active", None)
    assert lease_row(store, old).state == "done"
    assert undo(store, ann).lease_id == old
    assert verify(store).ok


def test_pressing_twice_takes_back_one(store: Store, make_project: MakeProject, clock: Clock) -> None:
    make_project(4)
    (ann,) = people(store, "ann")
    first = _answer(store, ann)
    clock.advance(5)
    second = _answer(store, ann)
    shown = claim(store, ann)
    before = count(store, Judgment)
    once = queue.withdraw(store, ann, second)
    clock.advance(1)
    twice = queue.withdraw(store, ann, second)
    assert (twice.lease_id, twice.revision, twice.draft) == (second, once.revision, once.draft)
    assert twice.expires > once.expires, "the hold is renewed"
    assert count(store, Judgment) == before + 1
    assert lease_row(store, first).state == "done"
    assert lease_row(store, shown.lease_id).state == "released"
    queue.release(store, ann, second)
    with pytest.raises(LeaseError, match="already"):
        queue.withdraw(store, ann, second)
    assert lease_row(store, first).state == "done"


def test_a_vote_sent_again_after_its_undo_brings_the_task_that_is_held(store: Store, make_project: MakeProject) -> None:
    """The answer to the first sending was lost, and another tab took the vote back before it was sent again."""
    make_project(3)
    (ann,) = people(store, "ann")
    task = claim(store, ann)
    vote = by_text(task)
    queue.submit(store, ann, task.lease_id, vote, claim_next=True)
    undone = queue.withdraw(store, ann, task.lease_id)
    for _ in range(2):
        again = queue.submit(store, ann, task.lease_id, vote, claim_next=True)
        assert again.duplicate and again.next is not None
        assert (again.next.lease_id, again.next.revision) == (task.lease_id, undone.revision)
    assert queue.submit(store, ann, task.lease_id, vote, undone.revision).counted
    assert verify(store).ok


def test_undo_keeps_to_its_project(store: Store, make_project: MakeProject, clock: Clock) -> None:
    make_project(2)
    create_project(store, "other")
    add_items(store, "other", [item_spec(50)])
    (ann,) = people(store, "ann")
    here = _answer(store, ann)
    clock.advance(60)
    there = _answer(store, ann, "other")
    assert queue.last_decided(store, "helpline", ann) == here
    assert queue.last_decided(store, "other", ann) == there
    assert undo(store, ann).lease_id == here
    assert lease_row(store, there).state == "done"
    with pytest.raises(LeaseError, match="nothing"):
        undo(store, ann)


def test_what_cannot_be_taken_back_says_why(store: Store, make_project: MakeProject, clock: Clock) -> None:
    make_project(3, lease_seconds=100, max_skips=5)
    ann, bo = people(store, "ann", "bo")
    older = _answer(store, ann)
    clock.advance(5)
    late = claim(store, ann)
    clock.advance(101)
    quick = claim(store, bo)
    assert quick.prompt == late.prompt
    queue.submit(store, bo, quick.lease_id, by_text(quick))
    queue.submit(store, ann, late.lease_id, by_text(late))
    with pytest.raises(LateAnswer):
        undo(store, ann)
    clock.advance(5)
    skipped = claim(store, ann)
    queue.skip(store, ann, skipped.lease_id, "")
    _answer(store, bo)
    with pytest.raises(TaskTaken):
        undo(store, ann)
    freeze(store, "helpline")
    with pytest.raises(FrozenAnswer):
        queue.withdraw(store, ann, older)
    for attempt in (queue.recall, queue.withdraw):
        with pytest.raises(FrozenAnswer):
            attempt(store, ann, older)
    assert lease_row(store, older).state == "done"


def _versions(store: Store, lease: str) -> list[int]:
    with store.read() as session:
        query = select(Judgment.guideline_version).where(Judgment.lease_id == lease).order_by(Judgment.revision)
        return list(session.scalars(query))


def test_later_votes_carry_the_guideline_of_their_day(store: Store, make_project: MakeProject, clock: Clock) -> None:
    project = make_project(3)
    (ann,) = people(store, "ann")
    changed, undone = _answer(store, ann), _answer(store, ann)
    begun = claim(store, ann)
    publish_guideline(store, project.id, "Be fairer.", reason="unclear", actor="lead")
    queue.submit(store, ann, begun.lease_id, by_text(begun))
    assert _versions(store, begun.lease_id) == [1], "what its annotator read when the task came"
    assert queue.recall(store, ann, changed).guideline_version == 2
    _change(store, ann, changed)
    assert _versions(store, changed) == [1, 2]
    task = queue.withdraw(store, ann, undone)
    assert task.guideline_version == 2
    queue.submit(store, ann, undone, by_text(task), task.revision)
    assert _versions(store, undone) == [1, 2, 2]
    publish_guideline(store, project.id, "Be kind.", reason="more", actor="lead")
    _change(store, ann, undone)
    assert _versions(store, undone) == [1, 2, 2, 3]


def test_stores_of_the_first_schema_learn_when_answers_were_given(
    store: Store, make_project: MakeProject, clock: Clock
) -> None:
    """Votes, changed, late, undone and skipped ones, the skip twice: down to the old schema and up again."""
    make_project(6, max_skips=9, lease_seconds=1000)
    ann, bo = people(store, "ann", "bo")
    leases = [_answer(store, who) for who in (ann, bo, ann)]
    clock.advance(60)
    _change(store, ann, leases[0])
    skipped = claim(store, ann)
    for _ in range(2):
        clock.advance(random.Random(3).randrange(5, 50))
        queue.skip(store, ann, skipped.lease_id, "unclear")
        task = undo(store, ann)
        assert task.lease_id == skipped.lease_id
    clock.advance(7)
    queue.skip(store, ann, skipped.lease_id, "unclear")
    claim(store, ann)

    def times() -> dict[str, object]:
        with store.read() as session:
            return {row.id: row.decided_at for row in session.execute(select(Lease.id, Lease.decided_at))}

    before = times()
    assert sum(moment is not None for moment in before.values()) == 4
    migrations.downgrade(store.engine, "0001")
    store.close()
    migrations.upgrade(store.engine)
    assert times() == before
    assert verify(store).ok
    store.transact(lambda tx: tx.session.execute(update(Lease).values(decided_at=None)) and None)
    assert "says otherwise" in str(verify(store).problems)
