"""Processor time of what a large project asks of the store all day: claims, progress lines, imported rows.

    python benchmarks/store_scale.py [--items 100000] [--out DIRECTORY]

SQLite runs in this process, so processor time holds the database's work and no other program's. Writes
benchmarks/store-scale-<date>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import insert

sys.path.insert(0, str(Path(__file__).parents[1]))

from preference_ui import queue
from preference_ui.db import Store, open_store
from preference_ui.events import Transaction
from preference_ui.ids import new_id, sha256_text
from preference_ui.models import Item, ItemResponse, Prompt, Response
from preference_ui.people import create_annotator
from preference_ui.progress import ProgressLines
from preference_ui.projects import ItemSpec, ResponseSpec, add_items, create_project
from preference_ui.settings import ProjectSettings
from rlhf.data.schema import Message

RESPONSES, PEOPLE, BATCH = 4, 10, 50


def fill(store: Store, project_id: str, count: int) -> None:
    """Items without an import, which is measured later."""

    def change(tx: Transaction) -> None:
        rows: dict[Any, list[dict[str, Any]]] = {Prompt: [], Response: [], Item: [], ItemResponse: []}
        for number in range(count):
            prompt, item = new_id(), new_id()
            rows[Prompt].append({
                "id": prompt, "content_sha256": sha256_text(f"prompt {number}"), "created": tx.now,
                "messages_json": '[{"content":"question","role":"user"}]',
            })  # fmt: skip
            rows[Item].append({
                "id": item, "project_id": project_id, "prompt_id": prompt, "base_needed": 2, "needed": 2,
                "created": tx.now,
            })  # fmt: skip
            for position in range(RESPONSES):
                response, words = new_id(), f"{number}.{position} " + "word " * 30
                rows[Response].append({
                    "id": response, "prompt_id": prompt, "text": words, "content_sha256": sha256_text(words),
                    "created": tx.now,
                })  # fmt: skip
                rows[ItemResponse].append({"item_id": item, "position": position, "response_id": response})
        for table, values in rows.items():
            tx.session.execute(insert(table), values)

    store.transact(change)


def cpu_ms(act: Callable[[int], object], times: int) -> float:
    """Median processor milliseconds of one call."""
    spent = []
    for number in range(times):
        begin = time.process_time()
        act(number)
        spent.append(1000 * (time.process_time() - begin))
    return statistics.median(spent)


def measure(store: Store, count: int) -> dict[str, float]:
    """All figures at one size."""
    project = create_project(store, "scale", settings=ProjectSettings(overlap=2))
    fill(store, project.id, count)
    people = [create_annotator(store, f"rater{number}").id for number in range(PEOPLE)]
    tasks = {who: queue.claim(store, "scale", who) for who in people}
    lines = ProgressLines(store)

    def vote(number: int) -> None:
        who = people[number % PEOPLE]
        task = tasks[who]
        if task is None:
            raise RuntimeError("no task is left; give more --items")
        order = queue.Vote([[slot] for slot in range(RESPONSES)])
        tasks[who] = queue.submit(store, who, task.lease_id, order, claim_next=True).next

    def import_rows(batch: int) -> None:
        specs = [
            ItemSpec(
                (Message("user", f"row {batch}.{number}"),),
                tuple(ResponseSpec(f"{batch}.{number}.{r}") for r in range(RESPONSES)),
            )
            for number in range(BATCH)
        ]
        add_items(store, project.id, specs)

    return {
        "items": count,
        "submit_and_claim_cpu_ms": round(cpu_ms(vote, 100), 2),
        "progress_cpu_ms": round(cpu_ms(lambda n: queue.progress(store, "scale", people[n % PEOPLE]), 20), 2),
        "progress_of_server_cpu_ms": round(cpu_ms(lambda n: lines.of("scale", people[n % PEOPLE]), 200), 2),
        "imported_row_cpu_ms": round(cpu_ms(import_rows, 6) / BATCH, 2),
    }


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    runs = []
    for count in args.items:
        with tempfile.TemporaryDirectory() as folder:
            store = open_store(Path(folder) / "scale.sqlite")
            runs.append(measure(store, count))
            store.close()
    now = datetime.now(UTC)
    record = {
        "date": now.isoformat(timespec="seconds"),
        "what": "median processor time per call, 10 people, 4 responses per item, overlap 2",
        "database": f"SQLite {sqlite3.sqlite_version}",
        "machine": {"cpus": os.cpu_count(), "system": platform.platform(terse=True)},
        "runs": runs,
    }
    text = json.dumps(record, indent=2)
    print(text)
    (args.out / f"store-scale-{now:%Y-%m-%d}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
