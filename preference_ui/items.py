"""The lead's view of a project's items: search, one item in full, and changes of priority and state."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Text, cast, column, func, or_, select
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.orm import Session

from preference_ui import places
from preference_ui.db import Store
from preference_ui.errors import DataError, StaleItem, WordedDataError
from preference_ui.events import Transaction
from preference_ui.ids import checked_text
from preference_ui.models import Item, Prompt
from preference_ui.projects import load_project

PAGE_SIZE = 50
# What a lead filters by. Repeated items are copies that ask one person again; they are found through their originals.
STATES = ("all", "open", "done", "review", "retired", "gold")


@dataclass(frozen=True)
class ItemLine:
    """An item in a list.

    Attributes:
        opening: how the last turn of its prompt begins.
        done, needed: votes given and asked for.
    """

    item_id: str
    opening: str
    topic: str
    group: str
    kind: str
    state: str
    priority: float
    done: int
    needed: int


@dataclass(frozen=True)
class ItemPage:
    """One page of a search; ``total`` counts all that was found."""

    lines: list[ItemLine]
    total: int

    @property
    def num_pages(self) -> int:
        """At least 1."""
        return max(1, -(-self.total // PAGE_SIZE))


def find_items(store: Store, project: str, *, text: str = "", state: str = "all", page: int = 1) -> ItemPage:
    """Search a project's items, oldest first, a page at a time.

    Args:
        text: stands in the topic, the group or a turn of the prompt, upper and lower case alike (SQLite: of A to Z).
        state: one of ``STATES``.
        page: from 1.

    Raises:
        DataError: no such state or project.
    """
    if state not in STATES:
        raise DataError(f"state {state!r} is not one of {', '.join(STATES)}")
    with store.read() as session:
        where = _conditions(session, load_project(session, project).id, checked_text(text.strip(), "text"), state)
        query = select(Item).join(Prompt, Prompt.id == Item.prompt_id).where(*where)
        total = session.scalar(select(func.count()).select_from(query.with_only_columns(Item.id).subquery())) or 0
        rows = session.execute(
            query.add_columns(Prompt.messages_json, Prompt.topic)
            .order_by(Item.id)
            .offset((max(1, page) - 1) * PAGE_SIZE)
            .limit(PAGE_SIZE)
        )
        return ItemPage([_line(*row) for row in rows], total)


def get_item(store: Store, project: str, item_id: str) -> ItemLine | None:
    """One item's line; None when the project has no such item."""
    with store.read() as session:
        row = session.execute(
            select(Item, Prompt.messages_json, Prompt.topic)
            .join(Prompt, Prompt.id == Item.prompt_id)
            .where(Item.id == item_id, Item.project_id == load_project(session, project).id)
        ).first()
        return _line(*row) if row else None


def _line(item: Item, messages: str, topic: str) -> ItemLine:
    opening = json.loads(messages)[-1]["content"][:100]
    return ItemLine(
        item.id, opening, topic, item.group, item.kind, item.state, item.priority, item.done, item.needed
    )  # fmt: skip


def _conditions(session: Session, project_id: str, text: str, state: str) -> Sequence[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = [Item.project_id == project_id, Item.kind != "repeat"]
    if state == "gold":
        where.append(Item.kind == "gold")
    elif state != "all":
        where.append(Item.state == state)
    if text:
        words = (Prompt.topic.icontains(text, autoescape=True), Item.group.icontains(text, autoescape=True))
        where.append(or_(*words, _in_a_turn(session, text)))
    return where


def _in_a_turn(session: Session, text: str) -> ColumnElement[bool]:
    """Looks into the turns, not into their JSON: else "role" or "user" would be found everywhere."""
    words: ColumnElement[Any]
    if session.get_bind().dialect.name == "postgresql":
        turns = func.json_array_elements(cast(Prompt.messages_json, JSON)).table_valued(column("value", JSON))
        words = turns.c.value.op("->>")("content")
    else:
        turns = func.json_each(Prompt.messages_json).table_valued("value")
        words = func.json_extract(turns.c.value, "$.content")
    found = select(1).select_from(turns).where(cast(words, Text).icontains(text, autoescape=True))
    return found.correlate(Prompt).exists()


def change_item(
    store: Store,
    project: str,
    item_id: str,
    *,
    actor: str,
    priority: float | None = None,
    retired: bool | None = None,
    seen: tuple[float, bool] | None = None,
) -> None:
    """Change an item's priority, take it out of the queue, or put it back.

    An item that comes back is open or done by its votes. Nothing is recorded where nothing changes.

    Args:
        seen: priority and whether it was retired when the caller looked: refuse when it is otherwise by now.

    Raises:
        DataError: the project has no such item, or the priority is not a finite number.
        StaleItem: see ``seen``.
    """
    if priority is not None and not math.isfinite(priority):
        raise WordedDataError(f"priority {priority} must be a finite number", "priority")

    def change(tx: Transaction) -> None:
        project_id = load_project(tx.session, project).id
        query = select(Item).where(Item.id == item_id, Item.project_id == project_id).with_for_update()
        item = tx.session.scalar(query)
        if item is None:
            raise DataError(f"project {project!r} has no item {item_id!r}")
        if seen is not None and seen != (item.priority, item.state == "retired"):
            raise StaleItem
        changed: dict[str, object] = {}
        if priority is not None and priority != item.priority:
            item.priority = changed["priority"] = priority
        if retired is not None and retired != (item.state == "retired"):
            if retired:
                places.retire(tx, item)
            else:
                places.reopen(tx, item)
            changed["state"] = item.state
        if changed:
            tx.session.flush()
            tx.record(actor, "item.change", "item", item_id, changed)

    store.transact(change)
