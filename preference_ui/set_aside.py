"""Setting a person's votes aside, and taking that back.

A vote set aside is retracted: a revision of its own says so in the audit chain, as when somebody undoes an answer, and
the task is given back to the queue. So exports, statistics and progress follow by themselves, and the tasks are asked
again. Frozen versions stay as they are: they read the chain up to their own event only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, select

from preference_ui import leases, places
from preference_ui.db import Store
from preference_ui.errors import DataError, StaleVote, StoreError
from preference_ui.events import RESTORE, SET_ASIDE, Transaction
from preference_ui.ids import checked_text, new_id
from preference_ui.models import Annotator, Event, Item, Judgment, Lease
from preference_ui.projects import load_project
from preference_ui.views import judgment_at, stored_vote
from preference_ui.votes import insert_judgment

# Votes per transaction: people who vote meanwhile wait for one batch at most.
BATCH = 50


@dataclass(frozen=True)
class VoteCounts:
    """One person's votes in a project: those that count, and those set aside that can be restored."""

    standing: int
    aside: int


def vote_counts(store: Store, project: str, annotator_id: str) -> VoteCounts:
    """How many votes ``set_aside`` and ``restore`` would change.

    Raises:
        DataError: no such project.
    """
    with store.read() as session:
        project_id = load_project(session, project).id
        standing, aside = (
            session.scalar(select(func.count()).select_from(query.subquery())) or 0
            for query in (_standing(project_id, annotator_id), _aside(project_id, annotator_id))
        )
    return VoteCounts(standing, aside)


def set_aside(store: Store, project: str, annotator_id: str, reason: str, *, actor: str) -> int:
    """Retract all votes of a person in a project, those in frozen versions too; returns how many.

    The tasks go back into the queue. The account stays as it is: while it is open, its owner is asked again as well.
    Works in batches; after an interruption a second call does the rest.

    Raises:
        DataError: no such project or person, or no reason.
    """
    if not checked_text(reason, "reason").strip():
        raise DataError("a reason is needed: it is all that later readers of the chain will know")
    project_id = _check(store, project, annotator_id)
    return _in_batches(
        store, _standing, project_id, annotator_id, lambda tx, lease, item: _retract(tx, lease, item, actor, reason)
    )


def restore(store: Store, project: str, annotator_id: str, *, actor: str) -> int:
    """Let votes that were set aside count again; returns how many.

    Where somebody else has filled the task meanwhile the vote is kept as a late one: exported, but not counted towards
    the overlap. Tasks that their owner took up again are left out.

    Raises:
        DataError: no such project or person.
    """
    project_id = _check(store, project, annotator_id)
    return _in_batches(
        store, _aside, project_id, annotator_id, lambda tx, lease, item: _put_back(tx, lease, item, actor)
    )


def _check(store: Store, project: str, annotator_id: str) -> str:
    with store.read() as session:
        if session.get(Annotator, annotator_id) is None:
            raise DataError(f"no annotator {annotator_id!r}")
        return load_project(session, project).id


def _newest(project_id: str, annotator_id: str) -> Select[Any]:
    """Leases of a person in a project, each with its newest judgment."""
    return (
        select(Lease.id)
        .join(Item, Item.id == Lease.item_id)
        .join(Judgment, (Judgment.lease_id == Lease.id) & (Judgment.revision == Lease.revision))
        .where(Item.project_id == project_id, Lease.annotator_id == annotator_id)
        .order_by(Lease.item_id)
    )


def _standing(project_id: str, annotator_id: str) -> Select[Any]:
    return _newest(project_id, annotator_id).where(Lease.state.in_(leases.VOTED), Judgment.retracted.is_(False))


def _aside(project_id: str, annotator_id: str) -> Select[Any]:
    noted = select(Event.seq).where(Event.entity_id == Judgment.id, Event.action == SET_ASIDE).exists()
    return _newest(project_id, annotator_id).where(Lease.state.in_(leases.GIVEN_BACK), noted)


def set_one_aside(tx: Transaction, item: Item, judgment_id: str, *, actor: str, reason: str) -> None:
    """Retract one vote on an item whose row the caller holds; ``restore`` brings it back with the person's others.

    Raises:
        DataError: no reason.
        StaleVote: it is no vote on this item that counts now.
    """
    if not reason.strip():
        raise DataError("a reason is needed: it is all that later readers of the chain will know")
    lease = tx.session.scalar(
        select(Lease)
        .join(Judgment, (Judgment.lease_id == Lease.id) & (Judgment.revision == Lease.revision))
        .where(Judgment.id == judgment_id, Lease.item_id == item.id, Lease.state.in_(leases.VOTED))
        .with_for_update(of=Lease)
        .execution_options(populate_existing=True)
    )
    if lease is None:
        raise StaleVote
    _retract(tx, lease, item, actor, reason)


def _in_batches(
    store: Store,
    query: Callable[[str, str], Select[Any]],
    project_id: str,
    annotator_id: str,
    act: Callable[[Transaction, Lease, Item], None],
) -> int:
    def change(tx: Transaction) -> int:
        # The person's own tabs wait, whether the account is open or not.
        tx.session.execute(select(Annotator.id).where(Annotator.id == annotator_id).with_for_update())
        found = tx.session.scalars(query(project_id, annotator_id).limit(BATCH)).all()
        for lease_id in found:
            act(tx, *leases.lock_lease(tx, annotator_id, lease_id))
        return len(found)

    total = 0
    while count := store.transact(change):
        total += count
    return total


def _revise(tx: Transaction, lease: Lease, item: Item, action: str, actor: str, more: dict[str, str | None]) -> None:
    """Store the lease's vote once more, as retracted or as given."""
    vote, previous = stored_vote(tx.session, lease), judgment_at(tx.session, lease)
    if vote is None or previous is None:
        raise StoreError(f"lease {lease.id}: its vote is missing; look at it with `rlhf prefs verify`")
    lease.revision += 1
    judgment_id = new_id()
    columns = {
        "id": judgment_id, "lease_id": lease.id, "revision": lease.revision, "retracted": action == SET_ASIDE,
        "supersedes": previous.id, "guideline_version": previous.guideline_version, "wall_ms": previous.wall_ms,
    }  # fmt: skip
    digest = insert_judgment(tx, vote, leases.shown_order(lease), columns)
    payload = {"lease": lease.id, "item": item.id, "revision": lease.revision, "digest": digest} | more
    tx.record(actor, action, "judgment", judgment_id, payload)


def _retract(tx: Transaction, lease: Lease, item: Item, actor: str, reason: str) -> None:
    _revise(tx, lease, item, SET_ASIDE, actor, {"reason": reason, "frozen_in": lease.frozen_in})
    step = -1 if lease.state == "done" else 0
    # What a version froze is the earlier revision; the lease itself is free again.
    lease.state, lease.frozen_in, lease.draft_json, lease.draft_at, lease.decided_at = (
        "released",
        None,
        None,
        None,
        None,
    )
    places.move_item(tx, item, done=step)


def _put_back(tx: Transaction, lease: Lease, item: Item, actor: str) -> None:
    given = select(func.max(Judgment.created)).where(Judgment.lease_id == lease.id, Judgment.retracted.is_(False))
    lease.decided_at = tx.session.scalar(given)  # not now: its owner answered then
    _revise(tx, lease, item, RESTORE, actor, {})
    counts = places.has_room(item)
    lease.state = "done" if counts else "surplus"
    places.move_item(tx, item, done=1 if counts else 0)
