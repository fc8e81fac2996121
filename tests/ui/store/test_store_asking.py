"""A task that somebody asked for is kept for them, and the one they hold stays held."""

from __future__ import annotations

import pytest
from store_helpers import Clock, MakeProject, by_text, claim, item_of, item_spec, lease_row, people

from preference_ui import queue
from preference_ui.backup import verify
from preference_ui.db import Store
from preference_ui.errors import LeaseError
from preference_ui.projects import ProjectInfo, add_items


def _ask(store: Store, project: ProjectInfo, who: str, number: int = 90) -> str:
    item = add_items(store, project.id, [item_spec(number)])[0]
    queue.reserve(store, project.id, who, item)
    return item


def test_the_task_in_work_stays_held_and_the_asked_one_comes_next(store: Store, make_project: MakeProject) -> None:
    project = make_project(2)
    ann, bo, cy = people(store, "ann", "bo", "cy")
    task = claim(store, ann)
    item = _ask(store, project, ann)
    assert lease_row(store, task.lease_id).state == "active"
    assert claim(store, ann).lease_id == task.lease_id, "a reloaded page stays where it is"
    claim(store, bo)
    assert queue.claim(store, "helpline", cy) is None, "nobody else gets what ann holds, or what is kept for her"
    receipt = queue.submit(store, ann, task.lease_id, by_text(task), claim_next=True)
    assert receipt.counted and receipt.next is not None
    assert item_of(store, receipt.next.lease_id).id == item
    assert item_of(store, receipt.next.lease_id).reserved_until is None
    assert queue.submit(store, ann, receipt.next.lease_id, by_text(receipt.next)).counted
    assert verify(store).ok


def test_who_waited_for_it_gets_it_at_once(store: Store, make_project: MakeProject) -> None:
    project = make_project(3)
    (ann,) = people(store, "ann")
    task = claim(store, ann)
    assert queue.claim(store, "helpline", ann, reserved=True) == claim(store, ann), "nothing is kept: nothing changes"
    queue.save_draft(store, ann, task.lease_id, {"tiers": [[2], [0, 1]]})
    item = _ask(store, project, ann)
    asked = queue.claim(store, "helpline", ann, reserved=True)
    assert asked is not None and item_of(store, asked.lease_id).id == item
    assert lease_row(store, task.lease_id).state == "released"
    following = queue.submit(store, ann, asked.lease_id, by_text(asked), claim_next=True).next
    assert following is not None
    assert (following.lease_id, following.draft) == (task.lease_id, {"tiers": [[2], [0, 1]]})


def test_a_task_is_kept_as_long_as_a_hold(store: Store, make_project: MakeProject, clock: Clock) -> None:
    project = make_project(0, lease_seconds=100)
    ann, bo = people(store, "ann", "bo")
    item = _ask(store, project, ann)
    assert queue.claim(store, "helpline", bo) is None
    clock.advance(101)
    assert item_of(store, claim(store, bo).lease_id).id == item
    assert queue.claim(store, "helpline", ann) is None


def test_others_join_once_the_asker_has_begun(store: Store, make_project: MakeProject) -> None:
    project = make_project(0, overlap=2)
    ann, bo = people(store, "ann", "bo")
    item = _ask(store, project, ann)
    assert queue.claim(store, "helpline", bo) is None
    claim(store, ann)
    assert item_of(store, claim(store, bo).lease_id).id == item


def test_what_was_ranked_before_is_not_kept_again(store: Store, make_project: MakeProject) -> None:
    project = make_project(0)
    (ann,) = people(store, "ann")
    item = _ask(store, project, ann)
    task = claim(store, ann)
    queue.submit(store, ann, task.lease_id, by_text(task))
    with pytest.raises(LeaseError, match="no room"):
        queue.reserve(store, project.id, ann, item)
