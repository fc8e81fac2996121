"""Large projects: what a claim, an undo and an import ask of the database is read from an index, in its order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, insert, text, update
from store_helpers import MakeProject, by_text, claim, item_spec, people

from preference_ui import queue
from preference_ui.db import Store
from preference_ui.ids import new_id, sha256_text
from preference_ui.memberships import set_groups
from preference_ui.models import Item, ItemResponse, Prompt, Response
from preference_ui.projects import add_items

NUM_ITEMS = 3000
# A plan that sorts, or reads all of a large table.
BAD = {
    "sqlite": ("TEMP B-TREE", "SCAN item", "SCAN prompt", "SCAN response", "SCAN lease"),
    "postgresql": ("Sort", "Seq Scan on item", "Seq Scan on prompt", "Seq Scan on response"),
}

# One person's own given-back tasks, and the holds that have just run out: a handful in a project of any size.
FEW = ("lease.state IN", "lease.expires <")


def _fill(store: Store, project_id: str) -> None:
    """Many items at once; each third is gold, and priorities differ."""

    def change(tx: Any) -> None:
        rows: dict[Any, list[dict[str, Any]]] = {Prompt: [], Response: [], Item: [], ItemResponse: []}
        for number in range(NUM_ITEMS):
            prompt, item, response = new_id(), new_id(), new_id()
            rows[Prompt].append({
                "id": prompt, "content_sha256": sha256_text(str(number)), "created": tx.now,
                "messages_json": '[{"content":"q","role":"user"}]',
            })  # fmt: skip
            rows[Response].append({
                "id": response, "prompt_id": prompt, "text": "a", "content_sha256": sha256_text("a"), "created": tx.now,
            })  # fmt: skip
            rows[Item].append({
                "id": item, "project_id": project_id, "prompt_id": prompt, "base_needed": 2, "needed": 2,
                "kind": "normal" if number % 3 else "gold", "priority": float(number % 7), "created": tx.now,
            })  # fmt: skip
            rows[ItemResponse].append({"item_id": item, "position": 0, "response_id": response})
        for table, values in rows.items():
            tx.session.execute(insert(table), values)

    store.transact(change)
    if store.is_postgres:
        with store.engine.begin() as connection:
            connection.execute(text("ANALYZE"))


def _share_out(store: Store, *groups: str) -> None:
    """A third of the items each for a group, and a third for anybody."""
    with store.engine.begin() as connection:
        for number, group in enumerate(groups):
            third = Item.priority.in_((number, number + len(groups)))
            connection.execute(update(Item).where(third).values(group=group))
    if store.is_postgres:
        with store.engine.begin() as connection:
            connection.execute(text("ANALYZE"))


@contextmanager
def _plans(store: Store) -> Iterator[list[str]]:
    """Collects the plans of all that is read meanwhile."""
    asked: list[tuple[str, Any]] = []
    plans: list[str] = []

    def note(_conn: Any, _cursor: Any, statement: str, values: Any, _context: Any, many: bool) -> None:
        if statement.startswith("SELECT") and not many:
            asked.append((statement, values))

    event.listen(store.engine, "before_cursor_execute", note)
    try:
        yield plans
    finally:
        event.remove(store.engine, "before_cursor_execute", note)
    with store.engine.connect() as connection:
        for statement, values in asked:
            command = "EXPLAIN " if store.is_postgres else "EXPLAIN QUERY PLAN "
            if store.is_postgres:
                # Tables of a few rows are sorted whatever their indexes; they are asked whether an index would do.
                choice = "on" if "FROM item" in statement else "off"
                for name in ("enable_sort", "enable_seqscan"):
                    connection.exec_driver_sql(f"SET {name} = {choice}")
            rows = connection.exec_driver_sql(command + statement, values).all()
            plans.append("\n".join(str(row[-1]) for row in rows) + f"\n-- {statement}")


@pytest.mark.parametrize("act", ["normal", "groups", "onward", "gold", "undo", "import"])
def test_no_plan_sorts_or_reads_a_whole_table(store: Store, make_project: MakeProject, act: str) -> None:
    project = make_project(0, gold_rate=1.0 if act == "gold" else 0.0, repeat_after_seconds=0)
    _fill(store, project.id)
    ann, bo = people(store, "ann", "bo")
    if act == "groups":
        _share_out(store, "da", "zh")
        set_groups(store, project.id, ann, ("da", "other"), actor="lead")
    task = claim(store, bo)
    queue.submit(store, bo, task.lease_id, by_text(task))
    actions: dict[str, Callable[[], object]] = {
        "normal": lambda: claim(store, ann),
        "groups": lambda: claim(store, ann),
        "onward": lambda: claim(store, ann),
        "gold": lambda: claim(store, ann),
        "undo": lambda: queue.last_decided(store, "helpline", bo),
        "import": lambda: add_items(store, project.id, [item_spec(1)]),
    }
    if act == "onward":
        task = claim(store, ann)
        queue.submit(store, ann, task.lease_id, by_text(task))
    with _plans(store) as plans:
        actions[act]()
    assert plans
    bad = BAD["postgresql" if store.is_postgres else "sqlite"]
    large = [plan for plan in plans if not any(words in plan for words in FEW)]
    assert [plan for plan in large if any(word in plan.split("\n-- ")[0] for word in bad)] == []
    needed = {
        "normal": "ix_item_queue",
        "groups": "ix_item_queue",
        "onward": "ix_item_queue",
        "gold": "ix_item_gold",
        "undo": "ix_lease_decided",
        "import": "ix_item_prompt",
    }
    assert any(needed[act] in plan for plan in plans)
