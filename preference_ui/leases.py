"""How the queue hands out items: expiry, choice and the lease itself, inside an open transaction.

Order of row locks on PostgreSQL: annotator, item, lease, end of the event chain. SQLite has one writer.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta

from sqlalchemy import bindparam, func, insert, select
from sqlalchemy.orm import aliased

from preference_ui.errors import LeaseError
from preference_ui.events import Transaction
from preference_ui.groups import open_to
from preference_ui.ids import canonical_json, new_id
from preference_ui.models import Annotator, Item, ItemResponse, Judgment, Lease
from preference_ui.places import move_item
from preference_ui.projects import ProjectInfo
from preference_ui.searches import ROOM, next_gold, next_normal

HELD = "active"
GIVEN_BACK = ("expired", "released")
VOTED = ("done", "surplus")


# Statements are built once: building and keying them costs more than running them.
_FRESH = {"populate_existing": True}
_ANNOTATOR = select(Annotator.active).where(Annotator.id == bindparam("who")).with_for_update()
# The item stands first, so PostgreSQL locks it first.
_OWN_LEASE = (
    select(Item, Lease)
    .join(Lease, Lease.item_id == Item.id)
    .where(Lease.id == bindparam("lease"), Lease.annotator_id == bindparam("who"))
    .with_for_update()
    .execution_options(**_FRESH)
)
_HELD_LEASE = select(Lease.id).where(Lease.annotator_id == bindparam("who"), Lease.state == HELD)
_STALE_ITEMS = (
    select(Item)
    .where(Item.id.in_(select(Lease.item_id).where(Lease.state == HELD, Lease.expires < bindparam("now"))))
    .order_by(Item.id)
    .with_for_update(skip_locked=True)
    .execution_options(**_FRESH)
)
_STALE_LEASES = (
    select(Lease)
    .where(Lease.item_id == bindparam("item"), Lease.state == HELD, Lease.expires < bindparam("now"))
    .with_for_update()
    .execution_options(**_FRESH)
)
_GIVEN_BACK = (
    ROOM.join(Lease, Lease.item_id == Item.id)
    .where(Lease.annotator_id == bindparam("who"), Lease.state.in_(GIVEN_BACK))
    # What is kept for this person comes first.
    .order_by(Item.reserved_until.is_(None), Lease.created)
    .limit(1)
    .with_for_update(of=Item, skip_locked=True)
    .execution_options(**_FRESH)
)
# What was answered before a round began anew is known to its person, and no answer in it counts.
_NOT_BEFORE = (
    ~select(Judgment.id).where(Judgment.lease_id == Lease.id, Judgment.created <= bindparam("round_began")).exists()
)
_GIVEN_BACK_GOLD = _GIVEN_BACK.where(Item.kind == "gold", _NOT_BEFORE)
_SKIPPED_GOLD = (
    select(Item, Lease)
    .join(Lease, Lease.item_id == Item.id)
    .where(
        Lease.annotator_id == bindparam("who"),
        Lease.state == "skipped",
        Item.project_id == bindparam("project"),
        Item.kind == "gold",
        Item.state == "open",
        open_to(bindparam("project"), bindparam("who")),
        _NOT_BEFORE,
    )
    .order_by(Lease.decided_at)
    .limit(1)
    .with_for_update(skip_locked=True)
    .execution_options(**_FRESH)
)
_RESERVED = (
    select(Lease.id)
    .join(Item, Item.id == Lease.item_id)
    .where(
        Lease.annotator_id == bindparam("who"),
        Lease.state.in_(GIVEN_BACK),
        Item.project_id == bindparam("project"),
        Item.reserved_until.is_not(None),
    )
    .limit(1)
)
_MEMBERS = (
    select(ItemResponse.response_id).where(ItemResponse.item_id == bindparam("item")).order_by(ItemResponse.position)
)


def lock_annotator(tx: Transaction, annotator_id: str) -> None:
    """Lock the caller's own row, so that one person's browser tabs take turns.

    Raises:
        LeaseError: there is no such person, or the account is closed.
    """
    if not tx.run(_ANNOTATOR, {"who": annotator_id}).scalar():
        raise LeaseError("this account is not active; ask the project's lead")


def lock_lease(tx: Transaction, annotator_id: str, lease_id: str) -> tuple[Lease, Item]:
    """Lock and read a lease and its item for their holder.

    Raises:
        LeaseError: the lease does not exist or belongs to somebody else (one message for both).
    """
    row = tx.session.execute(_OWN_LEASE, {"who": annotator_id, "lease": lease_id}).first()
    if row is None:
        raise LeaseError("this task is not yours; load the page again")
    item, lease = row
    return lease, item


def shown_order(lease: Lease) -> list[str]:
    """Response id per slot."""
    return list(json.loads(lease.permutation_json))


def expire_stale(tx: Transaction) -> int:
    """Give back every lease whose time is over; returns how many."""
    # Rows somebody works on at this moment are left for the next claim.
    items = tx.session.scalars(_STALE_ITEMS, {"now": tx.now}).all()
    count = 0
    for item in items:
        leases = tx.session.scalars(_STALE_LEASES, {"item": item.id, "now": tx.now}).all()
        for lease in leases:
            lease.state = "expired"
            tx.record("system", "lease.expire", "lease", lease.id, {"item": item.id})
        move_item(tx, item, active=-len(leases))
        count += len(leases)
    return count


def held_lease(tx: Transaction, annotator_id: str) -> str | None:
    """Id of the one lease that the annotator holds now."""
    return tx.run(_HELD_LEASE, {"who": annotator_id}).scalar()


def hold(tx: Transaction, lease: Lease, project: ProjectInfo) -> None:
    """(Re)start a lease's time."""
    lease.state = HELD
    lease.expires = tx.now + timedelta(seconds=project.settings.lease_seconds)
    tx.session.flush()


def give_back(tx: Transaction, annotator_id: str, lease_id: str) -> None:
    """Release a held lease; a lease that is no longer held is left as it is."""
    lease, item = lock_lease(tx, annotator_id, lease_id)
    if lease.state != HELD:
        return
    lease.state = "released"
    move_item(tx, item, active=-1)
    tx.record(annotator_id, "lease.release", "lease", lease.id, {"item": item.id})


def resume_given_back(
    tx: Transaction, annotator_id: str, project: ProjectInfo, *, in_round_since: datetime | None = None
) -> Lease | None:
    """Take up again an own lease that expired or was released, with its order and draft.

    Args:
        in_round_since: only gold, and none that was answered before then.
    """
    who = {"who": annotator_id, "project": project.id}
    if in_round_since is None:
        item = tx.session.scalars(_GIVEN_BACK, who).first()
    else:
        item = tx.session.scalars(_GIVEN_BACK_GOLD, who | {"round_began": in_round_since}).first()
    if item is None:
        return None
    query = select(Lease).where(Lease.item_id == item.id, Lease.annotator_id == annotator_id)
    lease = tx.session.scalars(query.with_for_update(), execution_options=_FRESH).one()
    _take_up(tx, lease, item, project, "lease.resume")
    return lease


def resume_skipped_gold(
    tx: Transaction, annotator_id: str, project: ProjectInfo, in_round_since: datetime
) -> Lease | None:
    """In a round without other gold: the task that was skipped longest ago. A skip does not use it up."""
    who = {"who": annotator_id, "project": project.id, "round_began": in_round_since}
    row = tx.session.execute(_SKIPPED_GOLD, who).first()
    if row is None:
        return None
    item, lease = row
    lease.skip_reason, lease.decided_at = None, None
    _take_up(tx, lease, item, project, "lease.unskip", skips=-1)
    return lease


def _take_up(tx: Transaction, lease: Lease, item: Item, project: ProjectInfo, action: str, **more: int) -> None:
    lease.claimed = tx.now
    lease.guideline_version = project.guideline_version
    item.reserved_until = None
    hold(tx, lease, project)
    move_item(tx, item, active=1, **more)
    tx.record(lease.annotator_id, action, "lease", lease.id, {"item": item.id})


def _make_repeat(tx: Transaction, annotator_id: str, project: ProjectInfo) -> tuple[Item, list[str]] | None:
    """Copy an item that the annotator answered long enough ago; returns it and the order shown then."""
    repeat = aliased(Item)
    before = tx.now - timedelta(seconds=project.settings.repeat_after_seconds)
    asked_again = select(repeat.id).where(repeat.repeat_of_lease_id == Lease.id).exists()
    query = (
        select(Lease, Item)
        .join(Item, Item.id == Lease.item_id)
        .where(
            Lease.annotator_id == annotator_id,
            Lease.state.in_(VOTED),
            # Since the answer that stands: a task may have been seen long before it was answered.
            Lease.decided_at <= before,
            Item.project_id == project.id,
            Item.kind == "normal",
            Item.state != "retired",
            # Of a group that was taken away since nothing is asked again.
            open_to(project.id, annotator_id),
            ~asked_again,
        )
        .order_by(Lease.decided_at, Lease.id)
    )
    count = tx.session.scalar(select(func.count()).select_from(query.order_by(None).subquery()))
    if not count:
        return None
    row = tx.session.execute(query.offset(tx.rng.randrange(count)).limit(1)).first()
    if row is None:
        return None
    source_lease, source = row
    item = Item(
        id=new_id(),
        project_id=project.id,
        prompt_id=source.prompt_id,
        kind="repeat",
        group=source.group,
        state="open",
        base_needed=1,
        needed=1,
        active=0,
        done=0,
        skips=0,
        priority=0.0,
        repeat_of_lease_id=source_lease.id,
        assigned_to=annotator_id,
        created=tx.now,
    )
    tx.session.add(item)
    tx.session.flush()
    members = tx.session.execute(
        select(ItemResponse.position, ItemResponse.response_id).where(ItemResponse.item_id == source.id)
    ).all()
    tx.session.execute(
        insert(ItemResponse), [{"item_id": item.id, "position": p, "response_id": r} for p, r in members]
    )
    return item, shown_order(source_lease)


def choose(
    tx: Transaction, annotator_id: str, project: ProjectInfo, *, only_gold: bool = False
) -> tuple[Item, list[str]] | None:
    """Pick the next item that is open to the annotator: normal, or now and then gold or a repeat.

    Nothing shown tells them apart. Without normal work there is nothing to mix into and the answer is None (a
    ``gold_rate`` of 1 makes a screening project that needs no normal work).

    Returns:
        The locked item, and for a repeat the order shown the first time (else an empty list).
    """
    settings = project.settings
    if only_gold:
        gold = next_gold(tx, annotator_id, project.id)
        return None if gold is None else (gold, [])
    draw = tx.rng.random()
    normal = next_normal(tx, annotator_id, project.id)
    if normal is None and settings.gold_rate < 1:
        return None
    if draw < settings.gold_rate:
        gold = next_gold(tx, annotator_id, project.id)
        if gold is not None:
            return gold, []
    elif draw < settings.gold_rate + settings.repeat_rate:
        repeat = _make_repeat(tx, annotator_id, project)
        if repeat is not None:
            return repeat
    return None if normal is None else (normal, [])


def has_reserved(tx: Transaction, annotator_id: str, project: ProjectInfo) -> bool:
    """Whether an item is kept for the annotator."""
    return tx.run(_RESERVED, {"who": annotator_id, "project": project.id}).first() is not None


def lock_free_item(tx: Transaction, annotator_id: str, project: ProjectInfo, item_id: str) -> Item:
    """Lock one normal item that has room for this annotator.

    Raises:
        LeaseError: it has none, the annotator had it before, or it is for a group that the annotator lacks.
    """
    item = tx.session.scalars(
        ROOM.where(
            Item.id == bindparam("item"),
            Item.kind == "normal",
            ~select(Lease.id).where(Lease.item_id == Item.id, Lease.annotator_id == bindparam("who")).exists(),
        )
        .with_for_update(of=Item)
        .execution_options(**_FRESH),
        {"project": project.id, "item": item_id, "who": annotator_id},
    ).first()
    if item is None:
        raise LeaseError("this task has no room for you; take the next one")
    return item


def lease_item(tx: Transaction, annotator_id: str, project: ProjectInfo, item: Item, earlier_order: list[str]) -> Lease:
    """Give the item to the annotator with a fresh random order (other than ``earlier_order``)."""
    lease = _add_lease(tx, annotator_id, project, item, earlier_order, HELD)
    move_item(tx, item, active=1)
    order = shown_order(lease)
    tx.record(annotator_id, "lease.claim", "lease", lease.id, {"item": item.id, "order": order})
    return lease


def reserve_item(tx: Transaction, annotator_id: str, project: ProjectInfo, item: Item) -> None:
    """Keep the item for the annotator's next claim, for as long as a hold lasts.

    It counts as given back and not as held: nobody holds two tasks.
    """
    lease = _add_lease(tx, annotator_id, project, item, [], "released")
    item.reserved_until = lease.expires
    tx.session.flush()
    order = shown_order(lease)
    tx.record(annotator_id, "lease.reserve", "lease", lease.id, {"item": item.id, "order": order})


def _add_lease(
    tx: Transaction, annotator_id: str, project: ProjectInfo, item: Item, earlier_order: list[str], state: str
) -> Lease:
    order = list(tx.run(_MEMBERS, {"item": item.id}).scalars())
    tx.rng.shuffle(order)
    while order == earlier_order:
        tx.rng.shuffle(order)
    lease = Lease(
        id=new_id(),
        item_id=item.id,
        annotator_id=annotator_id,
        permutation_json=canonical_json(order),
        state=state,
        expires=tx.now + timedelta(seconds=project.settings.lease_seconds),
        created=tx.now,
        claimed=tx.now,
        revision=0,
        guideline_version=project.guideline_version,
    )
    tx.session.add(lease)
    return lease
