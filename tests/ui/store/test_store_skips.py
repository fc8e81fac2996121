"""No task is lost: skipped ones come back after a decision, and those that nobody can take are told to the lead."""

from __future__ import annotations

import pytest
from store_helpers import Clock, MakeProject, by_text, claim, item_of, lease_row, people

from preference_ui import passwords, queue
from preference_ui.backup import verify
from preference_ui.db import Store
from preference_ui.people import create_annotator, ensure_annotator, update_annotator
from preference_ui.reviews import decide, inbox


@pytest.fixture(autouse=True)
def cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same function with a small cost: accounts with passwords are what is counted here, not their safety."""
    monkeypatch.setattr(passwords.hash_password, "__kwdefaults__", {"log_n": 4, "r": 8, "p": 1})


def _accounts(store: Store, *handles: str, role: str = "annotator") -> list[str]:
    return [create_annotator(store, handle, password="a long password", role=role).id for handle in handles]


def _skip(store: Store, who: str) -> str:
    task = claim(store, who)
    queue.skip(store, who, task.lease_id, "unclear")
    return task.lease_id


def _waiting(store: Store) -> list[str]:
    return [entry.item_id for entry in inbox(store, "helpline")]


def test_a_reopened_task_returns_to_those_who_skipped_it(store: Store, make_project: MakeProject, clock: Clock) -> None:
    make_project(1, max_skips=2)
    ann, bo = _accounts(store, "ann", "bo")
    (lead,) = people(store, "lead")
    for round_ in range(3):
        leases = []
        for who in (ann, bo):
            clock.advance(60)
            leases.append(_skip(store, who))
            item = item_of(store, leases[0])
            assert (item.state, item.skips) == (("open", 1) if who == ann else ("review", 2)), round_
        assert queue.claim(store, "helpline", ann) is None
        (entry,) = inbox(store, "helpline")
        assert entry.skip_reasons == ("unclear", "unclear")
        clock.advance(60)
        decide(store, item.id, "guideline_unclear", "say more", decided_by=lead)
        assert _waiting(store) == []
        assert (item_of(store, leases[0]).state, item_of(store, leases[0]).skips) == ("open", 0)
        assert queue.last_decided(store, "helpline", ann) is None, "the skip stands no more"
    task = claim(store, bo)
    assert task.lease_id == leases[1], "the order shown is the one of the first time"
    queue.submit(store, bo, task.lease_id, by_text(task))
    assert item_of(store, task.lease_id).state == "done"
    assert verify(store).ok


def test_a_decision_hides_a_dispute_until_somebody_answers_again(
    store: Store, make_project: MakeProject, clock: Clock
) -> None:
    make_project(1, overlap=2)
    ann, bo = _accounts(store, "ann", "bo")
    (lead,) = people(store, "lead")
    for who in (ann, bo):
        task = claim(store, who)
        queue.submit(store, who, task.lease_id, by_text(task, worst_first=who == bo))
    (item_id,) = _waiting(store)
    clock.advance(60)
    decide(store, item_id, "rater_error", "read again", decided_by=lead)
    assert _waiting(store) == []
    clock.advance(60)
    again = queue.recall(store, bo, task.lease_id)
    queue.submit(store, bo, task.lease_id, by_text(again, worst_first=True), again.revision)
    assert _waiting(store) == [item_id], "he stays with his answer: the dispute goes on"
    clock.advance(60)
    decide(store, item_id, "subjective", "", decided_by=lead, retire=True)
    clock.advance(60)
    again = queue.recall(store, bo, task.lease_id)
    queue.submit(store, bo, task.lease_id, by_text(again, worst_first=True), again.revision)
    assert _waiting(store) == [], "a retired task wants nothing"


def test_a_task_that_nobody_is_left_to_take_is_told_to_the_lead(
    store: Store, make_project: MakeProject, clock: Clock
) -> None:
    """Two votes wanted, two people, one skip of two allowed: no claim would ever bring it again."""
    make_project(1, overlap=2, max_skips=2)
    ann, bo = _accounts(store, "ann", "bo")
    (lead,) = _accounts(store, "lead", role="admin")
    ensure_annotator(store, "import:file.jsonl")
    lease = _skip(store, ann)
    item_id = item_of(store, lease).id
    assert _waiting(store) == [], "bo may take it"
    task = claim(store, bo)
    assert _waiting(store) == []
    queue.submit(store, bo, task.lease_id, by_text(task))
    assert _waiting(store) == [item_id]
    (cy,) = _accounts(store, "cy")
    assert _waiting(store) == [], "a new account may take it"
    update_annotator(store, cy, actor="lead", active=False)
    assert _waiting(store) == [item_id]
    clock.advance(60)
    decide(store, item_id, "subjective", "", decided_by=lead)
    assert _waiting(store) == []
    task = claim(store, ann)
    queue.submit(store, ann, task.lease_id, by_text(task))
    assert item_of(store, lease).state == "done"
    assert queue.progress(store, "helpline", ann).project_done == 2


def test_the_only_annotators_skip_reaches_the_lead(store: Store, make_project: MakeProject, clock: Clock) -> None:
    make_project(2)
    (ann,) = _accounts(store, "ann")
    (lead,) = _accounts(store, "lead", role="admin")
    lease = _skip(store, ann)
    assert _waiting(store) == [item_of(store, lease).id]
    task = claim(store, lead)
    assert item_of(store, task.lease_id).id == item_of(store, lease).id
    queue.release(store, lead, task.lease_id)
    other = claim(store, ann)
    queue.submit(store, ann, other.lease_id, by_text(other))
    clock.advance(60)
    decide(store, item_of(store, lease).id, "subjective", "", decided_by=lead, retire=True)
    assert _waiting(store) == []
    assert lease_row(store, lease).state == "skipped"
    assert (line := queue.progress(store, "helpline", ann)).project_done == line.project_total == 1


def test_a_lead_who_ranks_here_may_take_it(store: Store, make_project: MakeProject, clock: Clock) -> None:
    make_project(2, max_skips=2)
    (ann,) = _accounts(store, "ann")
    (lead,) = _accounts(store, "lead", role="admin")
    own = claim(store, lead)
    queue.submit(store, lead, own.lease_id, by_text(own))
    lease = _skip(store, ann)
    assert _waiting(store) == []
    task = claim(store, lead)
    assert item_of(store, task.lease_id).id == item_of(store, lease).id
