"""An item's places for votes: who counts, what becomes of a place that is free, and the state that follows.

The caller holds the item's row.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, select

from preference_ui.events import Transaction
from preference_ui.models import Item, Lease
from preference_ui.projects import ProjectInfo

_FRESH = {"populate_existing": True}
_LATE = (
    select(Lease)
    .where(Lease.item_id == bindparam("item"), Lease.state == "surplus")
    .order_by(Lease.decided_at, Lease.id)
    .limit(bindparam("room"))
    .with_for_update()
    .execution_options(**_FRESH)
)
_REPEATS = (
    select(Item)
    .where(
        Item.repeat_of_lease_id.in_(select(Lease.id).where(Lease.item_id == bindparam("item"))),
        Item.state == bindparam("state"),
    )
    .order_by(Item.id)
    .with_for_update()
    .execution_options(**_FRESH)
)


def move_item(tx: Transaction, item: Item, *, active: int = 0, done: int = 0, skips: int = 0) -> None:
    """Add to an item's counters and derive its state from them. The caller holds the row.

    A place that becomes free goes to the oldest late vote, if there is one. The caller has given the lease that left
    the place its new state.
    """
    item.active += active
    item.done += done
    item.skips += skips
    if active + done < 0:
        fill_with_late(tx, item)
    _derive_state(item)
    tx.session.flush()


def has_room(item: Item) -> bool:
    """Whether another vote counts towards the item's overlap. Of gold everybody's does."""
    return item.kind == "gold" or (item.state != "retired" and item.active + item.done < item.needed)


def _derive_state(item: Item) -> None:
    if item.kind == "gold" or item.state == "retired":
        return
    if item.done >= item.needed:
        item.state = "done"
    elif item.state == "done":
        item.state = "open"


def fill_with_late(tx: Transaction, item: Item) -> int:
    """Let votes that came late count while the item has room for them, the oldest first; returns how many."""
    if item.kind == "gold" or not has_room(item):
        return 0
    tx.session.flush()
    late = tx.session.scalars(_LATE, {"item": item.id, "room": item.needed - item.active - item.done}).all()
    for lease in late:
        lease.state = "done"
        item.done += 1
        tx.record("system", "lease.count", "lease", lease.id, {"item": item.id})
    return len(late)


def retire(tx: Transaction, item: Item) -> None:
    """Ask nobody about it any more, nor again those who have answered it."""
    item.state = "retired"
    for repeat in _repeats(tx, item, "open"):
        repeat.state = "retired"
    tx.session.flush()


def _repeats(tx: Transaction, item: Item, state: str) -> Sequence[Item]:
    if item.kind != "normal":
        return ()
    return tx.session.scalars(_REPEATS, {"item": item.id, "state": state}).all()


def reopen(tx: Transaction, item: Item) -> None:
    """Put an item back into the queue, or among the complete ones when its votes, late ones included, suffice."""
    was_retired, item.state = item.state == "retired", "open"
    fill_with_late(tx, item)
    _derive_state(item)
    for repeat in _repeats(tx, item, "retired") if was_retired else ():
        repeat.state = "open"
        _derive_state(repeat)
    tx.session.flush()


def extend_on_disagreement(tx: Transaction, item: Item, agreement: float, project: ProjectInfo) -> bool:
    """Ask for one more vote when the raters of a full item disagree and the project allows it."""
    settings = project.settings
    if (
        item.kind != "normal"
        or item.state != "done"
        or item.needed >= item.base_needed + settings.adaptive_extra
        or agreement >= settings.adaptive_agreement
    ):
        return False
    ask_one_more(tx, item)
    tx.record("system", "item.extend", "item", item.id, {"needed": item.needed, "agreement": round(agreement, 6)})
    return True


def ask_one_more(tx: Transaction, item: Item) -> None:
    """One more vote, which a late one may be. The caller holds the row and records why."""
    item.needed += 1
    fill_with_late(tx, item)
    move_item(tx, item)
