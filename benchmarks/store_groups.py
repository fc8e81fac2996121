"""Processor time of choosing the next task where half of a project's tasks are for other people.

    python benchmarks/store_groups.py [--items 20000] [--out DIRECTORY]

Each case times ``leases.choose`` alone: within a vote, where the search goes on from its last end, and from the start,
as for somebody who comes. The tasks for others stand first, the worst place for whoever looks for their own. Writes
benchmarks/store-groups-<date>.json.
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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select, update

sys.path.insert(0, str(Path(__file__).parents[1]))

from store_scale import RESPONSES, fill

from preference_ui import leases, queue, searches
from preference_ui.db import Store, open_store
from preference_ui.memberships import set_groups
from preference_ui.models import Item
from preference_ui.people import create_annotator
from preference_ui.projects import create_project, load_project
from preference_ui.settings import ProjectSettings

TIMES = 300
# Case: group of the first half of the tasks, of the second half, and the groups of the person who looks.
CASES = {
    "no groups": ("", "", ()),
    "half for others, own ones in no group": ("zh", "", ()),
    "half for others, own ones in a group": ("zh", "da", ("da",)),
    "half for others, four groups of one's own": ("zh", "da", ("a", "b", "c", "da")),
    "nothing for this person": ("zh", "zh", ("da",)),
}


def share_out(store: Store, project_id: str, first: str, second: str) -> None:
    """Give each half of the items, in the order in which they are asked, to a group."""
    with store.read() as session:
        ids = session.scalars(select(Item.id).where(Item.project_id == project_id).order_by(Item.id)).all()

    def change(tx: Any) -> None:
        tx.session.execute(update(Item).where(Item.id < ids[len(ids) // 2]).values(group=first))
        tx.session.execute(update(Item).where(Item.id >= ids[len(ids) // 2]).values(group=second))

    store.transact(change)


def measure(count: int, case: str) -> dict[str, Any]:
    """Median processor milliseconds of a choice, from the start and from where the last search ended."""
    first, second, own = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Path(folder) / "groups.sqlite")
        project = create_project(store, "scale", settings=ProjectSettings(overlap=2))
        fill(store, project.id, count)
        share_out(store, project.id, first, second)
        who = create_annotator(store, "rater").id
        if own:
            set_groups(store, project.id, who, own, actor="bench")
        spent: list[float] = []

        def choose(tx: Any, *args: Any, **more: Any) -> Any:
            begin = time.process_time()
            found = leases_choose(tx, *args, **more)
            spent.append(1000 * (time.process_time() - begin))
            return found

        leases_choose, leases.choose = leases.choose, choose
        try:
            task = queue.claim(store, "scale", who)
            spent.clear()
            order = queue.Vote([[slot] for slot in range(RESPONSES)])
            for _ in range(TIMES if task else 0):
                if task is None:
                    raise RuntimeError("no task is left; give more --items")
                task = queue.submit(store, who, task.lease_id, order, claim_next=True).next
            onward = statistics.median(spent) if spent else None
            spent.clear()

            def again(tx: Any) -> None:
                searches._ends.clear()
                leases.choose(tx, who, load_project(tx.session, project.id))

            for _ in range(TIMES):
                store.transact(again)
        finally:
            leases.choose = leases_choose
        store.close()
    return {
        "case": case,
        "onward_cpu_ms": None if onward is None else round(onward, 3),
        "from_the_start_cpu_ms": round(statistics.median(spent), 3),
    }


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    now = datetime.now(UTC)
    record = {
        "date": now.isoformat(timespec="seconds"),
        "what": f"median processor time of leases.choose, {args.items} items, overlap 2, {TIMES} choices per case",
        "database": f"SQLite {sqlite3.sqlite_version}",
        "machine": {"cpus": os.cpu_count(), "system": platform.platform(terse=True)},
        "runs": [measure(args.items, case) for case in CASES],
    }
    text = json.dumps(record, indent=2)
    print(text)
    (args.out / f"store-groups-{now:%Y-%m-%d}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
