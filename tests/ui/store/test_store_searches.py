"""A search for the next task goes on where the last one ended, and gives what a search from the start would give."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, insert
from store_helpers import Clock, MakeProject, by_text, claim, item_of, item_spec, people

from preference_ui import leases, queue, searches
from preference_ui.backup import verify
from preference_ui.db import Store
from preference_ui.events import Transaction
from preference_ui.ids import new_id
from preference_ui.items import change_item, find_items
from preference_ui.memberships import set_groups
from preference_ui.models import Item, Lease
from preference_ui.projects import add_items
from preference_ui.set_aside import set_aside

OWN = 3000
# All that is open to a person, without regard to what an index offers.
_IN_ORDER = searches._UNSEEN.order_by(Item.done.desc(), Item.priority.desc(), Item.id)


@pytest.mark.parametrize("words", [(), ("da", "zh")], ids=["no groups", "groups"])
def test_it_gives_what_a_search_from_the_start_gives(
    store: Store, make_project: MakeProject, clock: Clock, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    project = make_project(60, num_responses=2, overlap=3, adaptive_extra=1, max_skips=2, lease_seconds=100)
    crew = people(store, *(f"p{n}" for n in range(4)))
    grouped = [item_spec(100 + n, 2, group=words[n % 2], priority=float(n % 3)) for n in range(60) if words]
    add_items(store, project.id, grouped)
    rng, searched, went_on = random.Random(5), [0], [0]
    hinted = searches.next_normal

    def both(tx: Transaction, who: str, project_id: str) -> Item | None:
        values = {"who": who, "project": project_id, "now": tx.now, "kind": "normal"}
        from_start = tx.session.scalars(_IN_ORDER, values).first()
        known = (project_id, who) in searches._ends.get(store.engine, {})
        found = hinted(tx, who, project_id)
        assert found is from_start, "another item than a search from the start gives"
        searched[0] += 1
        went_on[0] += known
        return found

    monkeypatch.setattr(leases, "next_normal", both)
    spare = iter(range(1000, 2000))
    for _ in range(220):
        clock.advance(rng.choice((0, 1, 5, 40)))
        who = rng.choice(crew)
        task = queue.claim(store, project.id, who)
        act = rng.random()
        if act < 0.06:
            line = rng.choice(find_items(store, project.id).lines)
            change_item(store, project.id, line.item_id, actor="lead", priority=float(rng.randrange(3)),
                        retired=rng.random() < 0.2)  # fmt: skip
        elif act < 0.09:
            priority, group = float(rng.randrange(3)), rng.choice(("", *words))
            add_items(store, project.id, [item_spec(next(spare), 2, priority=priority, group=group)])
        elif act < 0.1:
            set_aside(store, project.id, rng.choice(crew), "clicks", actor="lead")
        elif words and act < 0.16:
            mine = rng.sample(words, rng.randrange(len(words) + 1))
            set_groups(store, project.id, rng.choice(crew), mine, actor="lead")
        elif task is None:
            continue
        elif act < 0.2:
            queue.skip(store, who, task.lease_id, "unclear", claim_next=rng.random() < 0.5)
        elif act < 0.3:
            queue.release(store, who, task.lease_id)
        elif act < 0.9:
            vote = by_text(task, worst_first=rng.random() < 0.3)
            queue.submit(store, who, task.lease_id, vote, task.revision, claim_next=rng.random() < 0.5)
    assert searched[0] > 80 and went_on[0] > 40
    assert verify(store).ok


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)  # where steps can be counted
def test_own_tasks_that_wait_for_others_are_passed_over_once(store: Store, make_project: MakeProject) -> None:
    """With two votes wanted they stay open, and stand first: each claim walked past all of them."""
    project = make_project(6, num_responses=2, overlap=2)
    ann, bo = people(store, "ann", "bo")
    first = claim(store, ann)
    queue.submit(store, ann, first.lease_id, by_text(first))
    _have_voted(store, project.id, first.lease_id)
    searches._ends.clear()
    with _steps(store) as from_start:
        task = claim(store, ann)
    again: list[int] = []
    for _ in range(3):
        with _steps(store) as steps:
            following = queue.submit(store, ann, task.lease_id, by_text(task), claim_next=True).next
        assert following is not None
        task = following
        again.append(steps[0])
    assert from_start[0] > OWN * 5 / 100 and max(again) < from_start[0] / 5, (from_start, again)
    # What somebody else has begun meanwhile comes first, as ever.
    queue.release(store, ann, task.lease_id)
    change_item(store, project.id, item_of(store, task.lease_id).id, actor="lead", retired=True)
    begun = claim(store, bo)
    assert item_of(store, begun.lease_id).done == 1
    queue.release(store, bo, begun.lease_id)
    late = add_items(store, project.id, [item_spec(7, 2, priority=-1.0)])[0]
    queue.reserve(store, project.id, bo, late)
    begun = queue.claim(store, project.id, bo, reserved=True)
    assert begun is not None and item_of(store, begun.lease_id).id == late
    queue.submit(store, bo, begun.lease_id, by_text(begun))
    assert item_of(store, claim(store, ann).lease_id).id == late


def _have_voted(store: Store, project_id: str, like: str) -> None:
    """``OWN`` more items that the person of a lease has voted on, and that ask for another vote."""

    def change(tx: Transaction) -> None:
        model, item = tx.session.get_one(Lease, like), tx.session.get_one(Item, item_of(store, like).id)
        items, held = [], []
        for _ in range(OWN):
            fresh = new_id()
            items.append({"id": fresh, "project_id": project_id, "prompt_id": item.prompt_id, "base_needed": 2,
                          "needed": 2, "done": 1, "created": tx.now})  # fmt: skip
            held.append({"id": new_id(), "item_id": fresh, "annotator_id": model.annotator_id, "state": "done",
                         "permutation_json": model.permutation_json, "expires": tx.now, "created": tx.now,
                         "claimed": tx.now, "decided_at": tx.now, "guideline_version": 1})  # fmt: skip
        tx.session.execute(insert(Item), items)
        tx.session.execute(insert(Lease), held)

    store.transact(change)


@contextmanager
def _steps(store: Store) -> Iterator[list[int]]:
    """Counts the database's steps, in hundreds."""
    count = [0]

    def step() -> int:
        count[0] += 1
        return 0

    def watch(connection: Any, _record: Any, _proxy: Any) -> None:
        connection.set_progress_handler(step, 100)

    event.listen(store.engine, "checkout", watch)
    try:
        yield count
    finally:
        event.remove(store.engine, "checkout", watch)
