"""Small parts that the store's tests share."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import select

from preference_ui import queue
from preference_ui.db import Store
from preference_ui.errors import LeaseError
from preference_ui.models import Base, Item, Lease
from preference_ui.people import create_annotator
from preference_ui.projects import ItemSpec, ProjectInfo, ResponseSpec
from preference_ui.queue import Assignment, Vote
from rlhf.data.schema import Message

MakeProject = Callable[..., ProjectInfo]


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move on, or back when negative."""
        self.now += timedelta(seconds=seconds)


def item_spec(index: int, num_responses: int = 3, **more: object) -> ItemSpec:
    """An item with recognisable texts; response ``r`` of prompt ``p`` reads ``p.r``."""
    return ItemSpec(
        prompt=(Message("user", f"question {index}"),),
        responses=tuple(ResponseSpec(f"{index}.{r}", run="sft", step=r) for r in range(num_responses)),
        **more,
    )  # type: ignore[arg-type]


def people(store: Store, *handles: str) -> list[str]:
    """Create accounts and return their ids."""
    return [create_annotator(store, handle).id for handle in handles]


def by_text(task: Assignment, *, worst_first: bool = False) -> Vote:
    """A vote that ranks responses by their text, whatever order they are shown in."""
    order = sorted(range(len(task.responses)), key=lambda i: task.responses[i], reverse=worst_first)
    return Vote(tiers=[[slot] for slot in order])


def claim(store: Store, annotator: str, project: str = "helpline") -> Assignment:
    """Claim, and insist on getting something."""
    task = queue.claim(store, project, annotator)
    assert task is not None
    return task


def count(store: Store, table: type[Base], *conditions: object) -> int:
    """Number of rows."""
    with store.read() as session:
        return len(session.scalars(select(table).where(*conditions)).all())  # type: ignore[arg-type]


def lease_row(store: Store, lease_id: str) -> Lease:
    """A lease as stored."""
    with store.read() as session:
        row = session.get(Lease, lease_id)
        assert row is not None
        return row


def item_of(store: Store, lease_id: str) -> Item:
    """The item behind a lease."""
    with store.read() as session:
        return session.scalars(select(Item).join(Lease, Lease.item_id == Item.id).where(Lease.id == lease_id)).one()


def shown(store: Store, lease_id: str) -> list[str]:
    """Response ids by slot."""
    return list(json.loads(lease_row(store, lease_id).permutation_json))


def undo(store: Store, annotator: str, project: str = "helpline") -> Assignment:
    """Take back the newest answer or skip, as the page does."""
    lease = queue.last_decided(store, project, annotator)
    if lease is None:
        raise LeaseError("there is nothing to undo")
    return queue.withdraw(store, annotator, lease)
