"""A late vote takes the place that opens later, so that no task waits for a vote that is in the store already."""

from __future__ import annotations

import pytest
from store_helpers import Clock, MakeProject, by_text, claim, item_of, lease_row, people

from preference_ui import passwords, queue
from preference_ui.backup import verify
from preference_ui.db import Store
from preference_ui.items import change_item
from preference_ui.people import create_annotator, update_annotator
from preference_ui.reviews import decide, inbox
from preference_ui.set_aside import restore, set_aside

HOLD = 100


@pytest.fixture(autouse=True)
def cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same function with a small cost: accounts with passwords are what is counted here, not their safety."""
    monkeypatch.setattr(passwords.hash_password, "__kwdefaults__", {"log_n": 4, "r": 8, "p": 1})


def _accounts(store: Store, *handles: str) -> list[str]:
    return [create_annotator(store, handle, password="a long password").id for handle in handles]


def _vote(store: Store, who: str, *, worst_first: bool = False) -> str:
    task = claim(store, who)
    queue.submit(store, who, task.lease_id, by_text(task, worst_first=worst_first))
    return task.lease_id


def _late(store: Store, clock: Clock, who: str, quicker: str) -> tuple[str, str]:
    """``who`` takes too long, ``quicker`` answers meanwhile; returns the leases of both."""
    task = claim(store, who)
    clock.advance(HOLD + 1)
    quick = _vote(store, quicker)
    assert not queue.submit(store, who, task.lease_id, by_text(task)).counted
    assert item_of(store, quick).id == item_of(store, task.lease_id).id
    return task.lease_id, quick


def _states(store: Store, *ids: str) -> list[str]:
    return [lease_row(store, lease).state for lease in ids]


def test_it_counts_when_the_vote_before_it_is_set_aside(store: Store, make_project: MakeProject, clock: Clock) -> None:
    make_project(1, lease_seconds=HOLD)
    ann, bo = _accounts(store, "ann", "bo")
    late, quick = _late(store, clock, ann, bo)
    assert set_aside(store, "helpline", bo, "clicks", actor="lead") == 1
    update_annotator(store, bo, actor="lead", active=False)
    assert _states(store, late, quick) == ["done", "released"]
    assert (item_of(store, late).state, item_of(store, late).done) == ("done", 1)
    assert inbox(store, "helpline") == []
    assert queue.progress(store, "helpline", ann).project_done == 1
    assert restore(store, "helpline", bo, actor="lead") == 1
    assert _states(store, late, quick) == ["done", "surplus"]
    assert verify(store).ok


def test_the_oldest_counts_when_a_hold_ends(store: Store, make_project: MakeProject, clock: Clock) -> None:
    """Whoever took the vote back holds its place, and leaves it to the first late one."""
    make_project(1, lease_seconds=HOLD)
    ann, bo, cy = _accounts(store, "ann", "bo", "cy")
    tasks = []
    for who in (ann, bo):
        tasks.append(claim(store, who))
        clock.advance(HOLD + 1)
    quick = _vote(store, cy)
    for who, task in zip((ann, bo), tasks, strict=True):
        clock.advance(5)
        queue.submit(store, who, task.lease_id, by_text(task))
    leases = [task.lease_id for task in tasks]
    queue.withdraw(store, cy, quick)
    assert _states(store, *leases, quick) == ["surplus", "surplus", "active"]
    queue.release(store, cy, quick)
    assert _states(store, *leases, quick) == ["done", "surplus", "released"]
    assert queue.claim(store, "helpline", cy) is None
    queue.withdraw(store, ann, leases[0])
    clock.advance(HOLD + 1)
    queue.claim(store, "helpline", cy)  # whoever claims gives back what has run out
    assert _states(store, *leases) == ["expired", "done"]
    assert verify(store).ok


def test_it_counts_when_somebody_skips(store: Store, make_project: MakeProject, clock: Clock) -> None:
    make_project(1, lease_seconds=HOLD, max_skips=1)
    ann, bo = _accounts(store, "ann", "bo")
    late, quick = _late(store, clock, ann, bo)
    queue.withdraw(store, bo, quick)
    queue.skip(store, bo, quick, "unclear")
    assert _states(store, late, quick) == ["done", "skipped"]
    assert item_of(store, late).state == "done", "it has its vote, and needs no decision"
    assert inbox(store, "helpline") == []


def test_raters_who_disagree_need_no_third_where_a_late_vote_is(
    store: Store, make_project: MakeProject, clock: Clock
) -> None:
    make_project(1, lease_seconds=HOLD, adaptive_extra=2)
    ann, bo, cy = _accounts(store, "ann", "bo", "cy")
    late = claim(store, ann)
    clock.advance(HOLD + 1)
    quick = _vote(store, bo, worst_first=True)
    assert queue.submit(store, ann, late.lease_id, by_text(late)).counted, "the dispute asks for one more vote"
    assert _states(store, late.lease_id, quick) == ["done", "done"]
    item = item_of(store, quick)
    assert (item.state, item.needed, item.done) == ("open", 3, 2), "and for the last that it may ask for"
    _vote(store, cy)
    assert item_of(store, quick).state == "done"
    assert verify(store).ok


def test_a_task_in_review_takes_a_late_vote(store: Store, make_project: MakeProject, clock: Clock) -> None:
    make_project(1, overlap=2, lease_seconds=HOLD, max_skips=1)
    ann, bo, cy = _accounts(store, "ann", "bo", "cy")
    (lead,) = people(store, "lead")
    slow = claim(store, ann)
    clock.advance(HOLD + 1)
    skipped = claim(store, bo)
    queue.skip(store, bo, skipped.lease_id, "unclear")
    assert item_of(store, slow.lease_id).state == "review"
    assert queue.submit(store, ann, slow.lease_id, by_text(slow)).counted
    item = item_of(store, slow.lease_id)
    assert (item.state, item.done) == ("review", 1)
    clock.advance(1)
    set_aside(store, "helpline", ann, "by mistake", actor="lead")
    assert restore(store, "helpline", ann, actor="lead") == 1
    assert _states(store, slow.lease_id) == ["done"]
    decide(store, item.id, "subjective", "", decided_by=lead)
    _vote(store, cy)
    assert item_of(store, slow.lease_id).state == "done"
    assert verify(store).ok


def test_a_task_that_comes_back_counts_what_came_meanwhile(
    store: Store, make_project: MakeProject, clock: Clock
) -> None:
    make_project(1, lease_seconds=HOLD)
    (ann,) = _accounts(store, "ann")
    task = claim(store, ann)
    item = item_of(store, task.lease_id).id
    clock.advance(HOLD + 1)
    (bo,) = _accounts(store, "bo")
    claim(store, bo)
    change_item(store, "helpline", item, actor="lead", retired=True)
    assert not queue.submit(store, ann, task.lease_id, by_text(task)).counted
    queue.release_held(store, bo)
    assert _states(store, task.lease_id) == ["surplus"], "nobody is asked about it"
    change_item(store, "helpline", item, actor="lead", retired=False)
    assert (item_of(store, task.lease_id).state, _states(store, task.lease_id)) == ("done", ["done"])
    assert verify(store).ok


def test_a_task_that_nobody_is_left_to_take_is_shown_though_nobody_skipped_it(
    store: Store, make_project: MakeProject, clock: Clock
) -> None:
    make_project(2, overlap=2)
    (lead,) = people(store, "lead")
    assert inbox(store, "helpline") == [], "nobody can rank yet"
    (ann,) = _accounts(store, "ann")
    first = _vote(store, ann)
    (entry,) = inbox(store, "helpline")
    assert (entry.item_id, entry.is_short) == (item_of(store, first).id, True)
    (bo,) = _accounts(store, "bo")
    assert inbox(store, "helpline") == []
    update_annotator(store, bo, actor="lead", active=False)
    assert len(inbox(store, "helpline")) == 1
    clock.advance(1)
    decide(store, entry.item_id, "subjective", "", decided_by=lead)
    assert inbox(store, "helpline") == [], "a decision takes it off the list"
