"""When an answer is asked for again, and when not."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from store_helpers import Clock, MakeProject, by_text, claim, item_of, people

from preference_ui import queue
from preference_ui.db import Store
from preference_ui.items import change_item
from preference_ui.models import Item
from preference_ui.reviews import decide

DAY = 86_400


def _repeats(store: Store) -> list[str]:
    with store.read() as session:
        return list(session.scalars(select(Item.state).where(Item.kind == "repeat").order_by(Item.id)))


def test_an_answer_is_asked_again_as_long_after_it_was_given(
    store: Store, make_project: MakeProject, clock: Clock
) -> None:
    """First seen two days ago, answered just now: to ask again would test the memory of a minute."""
    make_project(3, repeat_rate=1.0, repeat_after_seconds=DAY)
    (ann,) = people(store, "ann")
    first = claim(store, ann)
    queue.release(store, ann, first.lease_id)
    clock.advance(2 * DAY)
    again = claim(store, ann)
    assert again.lease_id == first.lease_id
    second = queue.submit(store, ann, again.lease_id, by_text(again), claim_next=True).next
    assert second is not None and item_of(store, second.lease_id).kind == "normal"
    clock.advance(DAY)
    third = queue.submit(store, ann, second.lease_id, by_text(second), claim_next=True).next
    assert third is not None and item_of(store, third.lease_id).kind == "repeat"
    assert third.prompt == first.prompt


@pytest.mark.parametrize("by_decision", [False, True])
def test_a_retired_task_is_not_asked_again(
    store: Store, make_project: MakeProject, clock: Clock, by_decision: bool
) -> None:
    make_project(3, repeat_rate=1.0, repeat_after_seconds=10)
    ann, lead = people(store, "ann", "lead")

    def retire(item_id: str) -> None:
        if by_decision:
            decide(store, item_id, "subjective", "", decided_by=lead, retire=True)
        else:
            change_item(store, "helpline", item_id, actor=lead, retired=True)

    task = claim(store, ann)
    original = item_of(store, task.lease_id).id
    clock.advance(1)
    following = queue.submit(store, ann, task.lease_id, by_text(task), claim_next=True).next
    assert following is not None
    clock.advance(20)
    repeat = queue.submit(store, ann, following.lease_id, by_text(following), claim_next=True).next
    assert repeat is not None and item_of(store, repeat.lease_id).kind == "repeat"
    queue.release(store, ann, repeat.lease_id)
    retire(original)
    assert _repeats(store) == ["retired"]
    task = claim(store, ann)
    assert item_of(store, task.lease_id).kind == "normal", "the repeat that was begun is not taken up again"
    retire(item_of(store, following.lease_id).id)
    queue.release(store, ann, task.lease_id)
    clock.advance(20)
    assert claim(store, ann).lease_id == task.lease_id
    assert _repeats(store) == ["retired"], "no copy of a retired task is made"
    queue.release_held(store, ann)
    change_item(store, "helpline", original, actor=lead, retired=False)
    assert _repeats(store) == ["open"], "with its original it comes back"
