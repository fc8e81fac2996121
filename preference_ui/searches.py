"""The next item for a person, in the order in which items are given.

A search passes over the person's own items, all of them: where two votes are asked for, they stay open and stand first.
So the place where a person's last search ended is remembered. Whatever stands before it was no task for this person
then; the event chain tells what has become one since, and the search goes on from there. A search from the start
follows when it finds nothing, when the person's groups change, and now and then, for reservations that ran out and rows
that somebody held locked.

The queue's index holds each group's items together, so those for other people are not even passed over: a person's
groups are looked at one by one, and the one whose first item is due before the others' is searched first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, Select, bindparam, select

from preference_ui.events import SET_GROUPS, Transaction
from preference_ui.groups import my_groups, open_groups, open_to
from preference_ui.models import Event, Item, Lease

_FRESH = {"populate_existing": True}
# More changes than these are dearer to look through than a new search; older places are forgotten.
MAX_EVENTS, MAX_AGE = 300, timedelta(minutes=10)

ROOM = select(Item).where(
    Item.project_id == bindparam("project"),
    Item.state == "open",
    (Item.kind == "gold") | (Item.active + Item.done < Item.needed),
    open_to(bindparam("project"), bindparam("who")),
)
_UNSEEN = ROOM.where(
    Item.kind == bindparam("kind"),
    Item.reserved_until.is_(None) | (Item.reserved_until <= bindparam("now")),
    ~select(Lease.id).where(Lease.item_id == Item.id, Lease.annotator_id == bindparam("who")).exists(),
).limit(1)


def _locked(query: Select[Any]) -> Select[Any]:
    return query.with_for_update(of=Item, skip_locked=True).execution_options(**_FRESH)


_ONE = _locked(_UNSEEN.where(Item.id == bindparam("item")))
# By their ids alone: together with the queue's columns SQLite would rather walk the queue.
_PLACES = select(Item.id, Item.done, Item.priority, Item.group).where(Item.id.in_(bindparam("items", expanding=True)))
_MINE = my_groups(bindparam("project"), bindparam("who")).subquery("mine")


def _heads(ordered: Select[Any]) -> Select[Any]:
    """The first item of each of a person's groups, null for none, and the group."""
    first = ordered.where(Item.group == _MINE.c.word).with_only_columns(Item.id).correlate(_MINE).scalar_subquery()
    return select(first.label("item"), _MINE.c.word)


class _Search:
    """The first item of some, in the order in which they are given, group by group.

    Args:
        some: what is looked through.
        begun_first: items that others began come first, so that the overlap of an item is complete soon.
        on_postgres: ``some`` in other words, for a look at several groups, of which some may have nothing.
    """

    def __init__(self, some: Select[Any], *, begun_first: bool = True, on_postgres: Select[Any] | None = None) -> None:
        columns = (Item.done.desc(), Item.priority.desc(), Item.id) if begun_first else (Item.priority.desc(), Item.id)
        ordered = some.order_by(*columns)
        self._take = _locked(ordered.where(Item.group == bindparam("group")))
        # Of each of the person's groups the first item. None is locked that is not taken: others would pass it over.
        self._heads = _heads(ordered)
        self._heads_on_postgres = self._heads if on_postgres is None else _heads(on_postgres.order_by(*columns))
        self._begun_first = begun_first

    def _key(self, row: Any) -> tuple[Any, ...]:
        return (-row.done if self._begun_first else 0, -row.priority, row.id)

    def first(self, tx: Transaction, values: dict[str, Any], groups: Sequence[str]) -> Item | None:
        """The first item of these groups, locked."""
        found: Item | None
        if len(groups) == 1:
            found = tx.session.scalars(self._take, values | {"group": groups[0]}).first()
            return found
        query = self._heads_on_postgres if tx.engine.dialect.name == "postgresql" else self._heads
        heads = {row.item: row.word for row in tx.run(query, values) if row.item is not None}
        for item_id in self._in_order(tx, list(heads)):
            found = tx.session.scalars(_ONE, values | {"item": item_id}).first()
            if found is None:  # somebody is just taking it
                found = tx.session.scalars(self._take, values | {"group": heads[item_id]}).first()
            if found is not None:
                return found
        return None

    def _in_order(self, tx: Transaction, items: list[str]) -> list[str]:
        if len(items) < 2:
            return items
        rows = tx.run(_PLACES, {"items": items}).all()
        return [row.id for row in sorted(rows, key=self._key)]


_NEXT_NORMAL = _Search(_UNSEEN)
# Gold stays open for everybody: its count of answers must not decide what comes next.
_NEXT_GOLD = _Search(_UNSEEN, begun_first=False)
_AS_FAR = _UNSEEN.where(Item.done == bindparam("done"), Item.id >= bindparam("last"))
# On from a place, as three ranges of the index: what is as far and as urgent, as far and less urgent, less far.
_ONWARD = (
    _Search(
        _AS_FAR.where(Item.priority == bindparam("priority")),
        # With one value for all but the id it would read the items in the order of their ids, all to the last one where
        # a group has none.
        on_postgres=_AS_FAR.where(Item.priority.between(bindparam("priority"), bindparam("priority"))),
    ),
    _Search(_UNSEEN.where(Item.done == bindparam("done"), Item.priority < bindparam("priority"))),
    _Search(_UNSEEN.where(Item.done < bindparam("done"))),
)
_SINCE = (
    select(Event.action, Event.entity, Event.entity_id, Event.payload_json)
    .where(Event.seq > bindparam("seq"))
    .order_by(Event.seq)
    .limit(MAX_EVENTS + 1)
)


@dataclass(frozen=True)
class _End:
    """Where a search ended, at which event of the chain, and which items have changed since and stand before it."""

    done: int
    priority: float
    last: str
    seq: int
    until: datetime
    changed: frozenset[str] = frozenset()

    def place(self) -> dict[str, Any]:
        return {"done": self.done, "priority": self.priority, "last": self.last}


_ends: WeakKeyDictionary[Engine, dict[tuple[str, str], _End]] = WeakKeyDictionary()


def next_normal(tx: Transaction, annotator_id: str, project_id: str) -> Item | None:
    """The first normal item with room that the annotator has not had, locked."""
    ends = _ends.setdefault(tx.engine, {})
    key = (project_id, annotator_id)
    who = {"who": annotator_id, "project": project_id, "now": tx.now, "kind": "normal"}
    groups = open_groups(tx, project_id, annotator_id)
    end = _with_changes(tx, ends.pop(key, None), f"{project_id}/{annotator_id}")
    if end is not None:
        found = _changed(tx, end, who, groups)
        if found is not None:
            # The others that changed, and this one should the transaction fail, are looked at the next time.
            ends[key] = end
            return found
        end = replace(end, changed=frozenset())
    found = _first(tx, _ONWARD, who | end.place(), groups) if end is not None else None
    until = end.until if found is not None and end is not None else tx.now + MAX_AGE
    found = found or _first(tx, [_NEXT_NORMAL], who, groups)
    if found is not None:
        ends[key] = _End(found.done, found.priority, found.id, tx.head_seq, until)
    return found


def next_gold(tx: Transaction, annotator_id: str, project_id: str) -> Item | None:
    """The first gold item that the annotator has not had, locked."""
    who = {"who": annotator_id, "project": project_id, "now": tx.now, "kind": "gold"}
    return _NEXT_GOLD.first(tx, who, open_groups(tx, project_id, annotator_id))


def _changed(tx: Transaction, end: _End, who: dict[str, Any], groups: Sequence[str]) -> Item | None:
    """The first of the changed items before the place that is one for this person now."""
    rows = tx.run(_PLACES, {"items": sorted(end.changed)}).all() if end.changed else []
    before = (-end.done, -end.priority, end.last)
    places = [(-row.done, -row.priority, row.id) for row in rows if row.group in groups]
    for *_, item_id in sorted(place for place in places if place < before):
        found: Item | None = tx.session.scalars(_ONE, who | {"item": item_id}).first()
        if found is not None:
            return found
    return None


def _first(tx: Transaction, searches: Iterable[_Search], values: dict[str, Any], groups: Sequence[str]) -> Item | None:
    return next(filter(None, (search.first(tx, values, groups) for search in searches)), None)


def _with_changes(tx: Transaction, end: _End | None, membership: str) -> _End | None:
    """The place with the items that changed since; None when it says too little by now.

    Args:
        membership: the person's, as events name it.
    """
    if end is None or not end.until - MAX_AGE <= tx.now < end.until:
        return None
    rows = tx.run(_SINCE, {"seq": end.seq}).all()
    if len(rows) > MAX_EVENTS or any(row.action == "items.add" for row in rows):
        return None
    events: list[Any] = [*rows, *tx.pending]
    if any(e.action == SET_GROUPS and e.entity_id == membership for e in events):
        return None
    items = {e.entity_id if e.entity == "item" else json.loads(e.payload_json).get("item") for e in events}
    changed = end.changed | {item for item in items if item}
    return replace(end, seq=tx.head_seq, changed=changed) if len(changed) <= MAX_EVENTS else None
