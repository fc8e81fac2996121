"""How far the raters of each item agree, kept up to date instead of computed anew for every look at the inbox."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from preference_ui.events import head
from preference_ui.models import Event, Item, Judgment, Lease
from preference_ui.ranking import Tiers, mean_agreement

# With more items than this changed since the last reading, reading all of them is the shorter way.
MOST_CHANGED = 500


def current_votes(project_id: str) -> Select[Any]:
    """Joins to the votes of normal items that count now; the caller adds columns and groups."""
    return (
        select(Lease.item_id)
        .join(Item, Item.id == Lease.item_id)
        .join(Judgment, (Judgment.lease_id == Lease.id) & (Judgment.revision == Lease.revision))
        .where(Item.project_id == project_id, Item.kind == "normal", Judgment.retracted.is_(False))
    )


def agreements(session: Session, project_id: str, item_ids: Collection[str] | None = None) -> dict[str, float]:
    """Mean pair agreement of every item on which at least two people differ; on all others it is 1.

    Args:
        item_ids: of these items only; None: of all.
    """
    votes = current_votes(project_id)
    if item_ids is not None:
        votes = votes.where(Lease.item_id.in_(item_ids))
    differ = votes.group_by(Lease.item_id).having(func.count(Judgment.tiers_json.distinct()) > 1)
    tiers: dict[str, list[Tiers]] = {}
    query = votes.add_columns(Judgment.tiers_json).where(Lease.item_id.in_(differ))
    for item_id, text in session.execute(query):
        tiers.setdefault(item_id, []).append(json.loads(text))
    return {item_id: mean_agreement(rankings) for item_id, rankings in tiers.items()}


class Agreements:
    """``agreements`` of one project, read whole once. Later only the items are read that the chain names since.

    Every vote, change, retraction and restoration is an event of a judgment, so none is missed. Threads may share it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seq = 0
        self._scores: dict[str, float] = {}

    def read(self, session: Session, project_id: str) -> dict[str, float]:
        """The figures at the session's place in the chain, or a later one that another thread has read."""
        seq = head(session)[0]
        with self._lock:
            if seq > self._seq:
                self._catch_up(session, project_id)
                self._seq = seq
            return dict(self._scores)

    def _catch_up(self, session: Session, project_id: str) -> None:
        changed = (
            select(Lease.item_id)
            .join(Judgment, Judgment.lease_id == Lease.id)
            .join(Event, (Event.entity_id == Judgment.id) & (Event.entity == "judgment"))
            .where(Event.seq > self._seq)
            .distinct()
            .limit(MOST_CHANGED + 1)
        )
        items = set(session.scalars(changed)) if self._seq else None
        if items is None or len(items) > MOST_CHANGED:
            self._scores = agreements(session, project_id)
            return
        for item in items:
            self._scores.pop(item, None)
        self._scores |= agreements(session, project_id, items)
