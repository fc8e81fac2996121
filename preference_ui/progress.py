"""The progress line of one annotator: it moves by the same step for every answer, or it would tell the kinds apart.

An own answer counts one, whatever its kind. Of other people only votes on normal items count, up to the overlap, and
the total is what normal items ask for: neither gold, nor repeats, nor an extra vote on a disagreement moves it, nor
did the own answers of a qualification round, which says of itself what it is. Own
gold and repeated items so fill the line a little early; the lead's pages have the exact figures. Items for groups that
the annotator lacks are in neither.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from preference_ui.db import Store
from preference_ui.groups import groups_of, open_to
from preference_ui.leases import VOTED
from preference_ui.models import Item, Lease, Membership
from preference_ui.projects import load_project
from preference_ui.zones import midnight

REFRESH_SECONDS = 30.0


@dataclass(frozen=True)
class Progress:
    """Counts for the progress line."""

    mine_today: int
    mine_total: int
    project_done: int
    project_total: int


@dataclass(frozen=True)
class _Elsewhere:
    """What does not depend on the annotator's own next answer. ``done`` lacks own answers and may be below 0."""

    done: int
    total: int
    has_normal: bool = True


def progress(store: Store, project: str, annotator_id: str, zone: tzinfo = UTC) -> Progress:
    """Counts for the progress line of one annotator, all read now; ``zone`` is where the annotator's days begin."""
    with store.read() as session:
        project_id = load_project(session, project).id
        since = midnight(store.clock(), zone)
        return _line(session, project_id, annotator_id, since, _elsewhere(session, project_id, annotator_id))


class ProgressLines:
    """The lines of all who rank. What others did is read every ``REFRESH_SECONDS``: a scan of all items.

    For somebody whose groups have changed it is read at once.

    Besides the time it saves, an own answer cannot show in that part before the next reading. Threads may share it.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._read: dict[tuple[str, str, tuple[str, ...]], tuple[datetime, _Elsewhere]] = {}

    def of(self, project: str, annotator_id: str, zone: tzinfo = UTC) -> Progress:
        """Counts for one annotator, whose days begin as in ``zone``; the own ones are of this moment."""
        now = self.store.clock()
        with self.store.read() as session:
            project_id = load_project(session, project).id
            key = (project_id, annotator_id, groups_of(session, project_id, annotator_id))
            with self._lock:
                then, elsewhere = self._read.get(key, (None, None))
            if elsewhere is None or then is None or not timedelta(0) <= now - then < timedelta(seconds=REFRESH_SECONDS):
                elsewhere = _elsewhere(session, project_id, annotator_id)
                with self._lock:
                    self._read[key] = (now, elsewhere)
            return _line(session, project_id, annotator_id, midnight(now, zone), elsewhere)


def _line(session: Session, project_id: str, annotator_id: str, since: datetime, elsewhere: _Elsewhere) -> Progress:
    passed = select(Membership.decided_at).where(
        Membership.project_id == project_id, Membership.annotator_id == annotator_id, Membership.state == "qualified"
    )
    trial = (Item.kind == "gold") & (Lease.decided_at <= passed.scalar_subquery())
    today, mine, trials = session.execute(
        select(
            func.coalesce(func.sum(case((Lease.decided_at >= since, 1), else_=0)), 0),
            func.count(),
            func.coalesce(func.sum(case((trial, 1), else_=0)), 0),
        )
        .select_from(Lease)
        .join(Item, Item.id == Lease.item_id)
        .where(Lease.annotator_id == annotator_id, Lease.state.in_(VOTED), Item.project_id == project_id)
    ).one()
    # Everybody knows what the tasks of a round were. A project that is nothing but gold counts them all the same.
    done = max(0, min(elsewhere.total, elsewhere.done + mine - (trials if elsewhere.has_normal else 0)))
    return Progress(int(today), int(mine), done, elsewhere.total)


def _elsewhere(session: Session, project_id: str, annotator_id: str) -> _Elsewhere:
    mine_to_take = open_to(project_id, annotator_id)
    within = case((Item.done < Item.base_needed, Item.done), else_=Item.base_needed)
    rows = session.execute(
        select(Item.kind, func.sum(within), func.sum(Item.base_needed), func.count())
        .where(Item.project_id == project_id, Item.state != "retired", mine_to_take)
        .group_by(Item.kind)
    ).all()
    kinds = {kind: (int(done), int(needed), int(items)) for kind, done, needed, items in rows}
    if "normal" not in kinds:
        normal = select(Item.id).where(Item.project_id == project_id, Item.kind == "normal", Item.state != "retired")
        if session.scalar(normal.limit(1)):
            return _Elsewhere(0, 0)  # all of it is for others, and gold comes with normal items only
        # A screening project: everybody ranks every gold item once.
        return _Elsewhere(0, kinds.get("gold", (0, 0, 0))[2], has_normal=False)
    done, total, _ = kinds["normal"]
    # Of the own votes those that ``within`` holds, and those on items that are no longer asked for, or not this person.
    counted = case(
        ((Item.state == "retired") | ~mine_to_take, 1),
        (Lease.state != "done", 0),
        (Item.done <= Item.base_needed, 1),
        else_=0,
    )
    mine = session.scalar(
        select(func.coalesce(func.sum(counted), 0))
        .select_from(Lease)
        .join(Item, Item.id == Lease.item_id)
        .where(
            Lease.annotator_id == annotator_id,
            Lease.state.in_(VOTED),
            Item.project_id == project_id,
            Item.kind == "normal",
        )
    )
    return _Elsewhere(done - int(mine or 0), total)
