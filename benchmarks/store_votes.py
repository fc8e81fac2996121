"""Durable votes per second of the preference store, and how long one vote takes.

    python benchmarks/store_votes.py [--store PATH_OR_URL] [--votes 500] [--processes 1 4]

Each vote is one committed transaction (submit and the next claim) with the disk flushed; several processes share one
store. Writes benchmarks/store-votes-<date>.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sqlite3
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from preference_ui import queue
from preference_ui.backup import verify
from preference_ui.db import open_store
from preference_ui.people import ensure_annotator
from preference_ui.projects import ItemSpec, ResponseSpec, add_items, create_project
from preference_ui.settings import ProjectSettings
from rlhf.data.schema import Message

RESPONSES = 4


def fill(url: str, name: str, count: int) -> None:
    """A project with enough items for ``count`` votes of one rater each."""
    store = open_store(url)
    project = create_project(store, name, settings=ProjectSettings(lease_seconds=3600))
    for start in range(0, count, 500):
        specs = [
            ItemSpec(
                (Message("user", f"{name} question {i} " + "word " * 40),),
                tuple(ResponseSpec(f"{i}.{r} " + "answer " * 60) for r in range(RESPONSES)),
            )
            for i in range(start, min(count, start + 500))
        ]
        add_items(store, project.id, specs)
    store.close()


def vote(url: str, name: str, rater: str, results: multiprocessing.Queue) -> None:
    """Vote until nothing is left; report the seconds of each acknowledged vote."""
    store = open_store(url, create=False)
    person = ensure_annotator(store, rater).id
    task = queue.claim(store, name, person)
    seconds = []
    cpu = time.process_time()
    while task is not None:
        order = sorted(range(len(task.responses)), key=lambda i: task.responses[i])
        start = time.perf_counter()
        receipt = queue.submit(store, person, task.lease_id, queue.Vote([[i] for i in order]), claim_next=True)
        seconds.append(time.perf_counter() - start)
        task = receipt.next
    used = time.process_time() - cpu
    store.close()
    results.put((seconds, used))


def measure(url: str, votes: int, processes: int) -> dict[str, float]:
    """Votes per second with so many processes at once."""
    name = f"bench-{processes}-{time.time_ns()}"
    fill(url, name, votes)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=vote, args=(url, name, f"rater{k}", results)) for k in range(processes)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    reports = [results.get() for _ in workers]
    seconds = sorted(s for report, _ in reports for s in report)
    cpu_seconds = sum(used for _, used in reports)
    for worker in workers:
        worker.join()
    # Starting the interpreters is not voting: count the time spent in calls.
    busy = sum(seconds) / processes
    return {
        "processes": processes,
        "votes": len(seconds),
        "votes_per_second": round(len(seconds) / busy, 1),
        "cpu_ms_per_vote": round(1000 * cpu_seconds / len(seconds), 2),
        "p50_ms": round(1000 * seconds[len(seconds) // 2], 2),
        "p95_ms": round(1000 * seconds[int(len(seconds) * 0.95)], 2),
        "p99_ms": round(1000 * seconds[int(len(seconds) * 0.99)], 2),
        "wall_seconds_with_start": round(time.perf_counter() - start, 2),
    }


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", help="a new SQLite file or a PostgreSQL URL; default: a temporary file")
    parser.add_argument("--votes", type=int, default=500)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = args.store or str(Path(folder) / "votes.sqlite")
        store = open_store(url)
        database = f"SQLite {sqlite3.sqlite_version}" if not store.is_postgres else "PostgreSQL"
        load = os.getloadavg()[0]
        runs = [measure(url, args.votes, processes) for processes in args.processes]
        sound = verify(store).ok
        store.close()
    now = datetime.now(UTC)
    record = {
        "date": now.isoformat(timespec="seconds"),
        "what": "durable votes, one commit each (submit and next claim), 4 responses per item",
        "database": database,
        "machine": {"cpus": os.cpu_count(), "system": platform.platform(terse=True), "load_before": round(load, 2)},
        "target_votes_per_second": 100,
        "runs": runs,
        "verify_ok": sound,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"store-votes-{now:%Y-%m-%d}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))
    print(path)


if __name__ == "__main__":
    main()
