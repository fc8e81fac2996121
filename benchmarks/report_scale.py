"""Processor time of the lead's pages on a large project: all figures of the overview, and the inbox.

    python benchmarks/report_scale.py [--items 100000] [--raters 20] [--out DIRECTORY]

SQLite runs in this process, so processor time holds the database's work and no other program's. Writes
benchmarks/report-scale-<date>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import insert, update

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from store_scale import RESPONSES, fill

from preference_ui import queue
from preference_ui.app.address import Address
from preference_ui.app.dashboard import Dashboard
from preference_ui.app.site import Site
from preference_ui.db import Store, open_store
from preference_ui.events import Transaction
from preference_ui.ids import new_id
from preference_ui.models import Event, Item, ItemResponse, Judgment, Lease
from preference_ui.people import create_annotator
from preference_ui.projects import create_project
from preference_ui.settings import ProjectSettings

OPEN_ITEMS = 10


def vote_on_all(store: Store, people: list[str]) -> None:
    """Two votes on every item but the last few, as rows: people of different care, without the queue."""
    rng = random.Random(0)

    def change(tx: Transaction) -> None:
        items = list(tx.session.scalars(Item.__table__.select().with_only_columns(Item.id).order_by(Item.id)))
        done = items[:-OPEN_ITEMS]
        members: dict[str, list[str]] = {}
        for item, response in tx.session.execute(
            ItemResponse.__table__.select().with_only_columns(ItemResponse.item_id, ItemResponse.response_id)
        ):
            members.setdefault(item, []).append(response)
        seq = tx._last.seq if tx._last else 0
        rows: dict[Any, list[dict[str, Any]]] = {Lease: [], Judgment: [], Event: []}
        for item in done:
            worth = {response: rng.gauss(0, 1) for response in members[item]}
            for index in rng.sample(range(len(people)), 2):
                shown = rng.sample(members[item], RESPONSES)
                noise = 0.3 + 2 * index / len(people)
                order = sorted(shown, key=lambda r: -worth[r] + rng.gauss(0, noise))
                lease, judgment, seq = new_id(), new_id(), seq + 1
                rows[Lease].append({
                    "id": lease, "item_id": item, "annotator_id": people[index], "permutation_json": json.dumps(shown),
                    "state": "done", "expires": tx.now, "created": tx.now, "claimed": tx.now, "decided_at": tx.now,
                    "revision": 1, "guideline_version": 1,
                })  # fmt: skip
                rows[Judgment].append({
                    "id": judgment, "lease_id": lease, "revision": 1, "tiers_json": json.dumps([[r] for r in order]),
                    "active_ms": 9000, "wall_ms": 9000, "guideline_version": 1, "digest": "0" * 64, "created": tx.now,
                })  # fmt: skip
                rows[Event].append({
                    "seq": seq, "created": tx.now, "actor": people[index], "action": "judgment.submit",
                    "entity": "judgment", "entity_id": judgment, "payload_json": "{}", "prev_hash": "0" * 64,
                    "hash": "0" * 64,
                })  # fmt: skip
        for table, values in rows.items():
            tx.session.execute(insert(table), values)
        tx.session.execute(update(Item).where(Item.id.in_(items[-OPEN_ITEMS:])).values(state="open"))
        tx.session.execute(update(Item).where(Item.id.not_in(items[-OPEN_ITEMS:])).values(done=2, state="done"))

    store.transact(change)


def cpu_seconds(act: Callable[[], object]) -> float:
    """Processor seconds of one call, its threads included."""
    begin = time.process_time()
    act()
    return round(time.process_time() - begin, 3)


def measure(store: Store, count: int, num_raters: int) -> dict[str, float]:
    """All figures at one size."""
    project = create_project(store, "scale", settings=ProjectSettings(overlap=2))
    fill(store, project.id, count)
    people = [create_annotator(store, f"rater{number}").id for number in range(num_raters)]
    vote_on_all(store, people)
    site = Site(store, "scale", Address("http://127.0.0.1:1"))
    dashboard = Dashboard(site)

    def vote() -> None:
        task = queue.claim(store, "scale", people[0])
        if task is None:
            raise RuntimeError("no task is left")
        queue.submit(store, people[0], task.lease_id, queue.Vote([[slot] for slot in range(RESPONSES)]))

    first = cpu_seconds(lambda: read_inbox(site))
    vote()
    again = cpu_seconds(lambda: read_inbox(site))
    return {
        "items": count,
        "raters": num_raters,
        "figures_cpu_s": cpu_seconds(dashboard.figures),
        "inbox_first_cpu_s": first,
        "inbox_after_a_vote_cpu_s": again,
    }


def read_inbox(site: Site) -> object:
    """What the inbox's tab reads when it is opened."""
    return site.inbox()


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--raters", type=int, nargs="+", default=[20])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    runs = []
    for raters in args.raters:
        with tempfile.TemporaryDirectory() as folder:
            store = open_store(Path(folder) / "scale.sqlite")
            runs.append(measure(store, args.items, raters))
            store.close()
    now = datetime.now(UTC)
    record = {
        "date": now.isoformat(timespec="seconds"),
        "what": "processor time of the lead's figures and inbox, two votes per item, 4 responses per item",
        "database": f"SQLite {sqlite3.sqlite_version}",
        "machine": {"cpus": os.cpu_count(), "system": platform.platform(terse=True)},
        "runs": runs,
    }
    text = json.dumps(record, indent=2)
    print(text)
    (args.out / f"report-scale-{now:%Y-%m-%d}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
