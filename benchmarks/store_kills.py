"""Kill -9 of voting processes, on SQLite and on a real PostgreSQL server: is every acknowledged vote there, once?

    python benchmarks/store_kills.py [--rounds 50] [--databases sqlite postgresql]

Each round starts a process that votes as two people, as fast as it can, waits until some votes are acknowledged, and
kills it with SIGKILL at a random moment. All rounds share one store. At the end every acknowledged vote must be stored
exactly once and the store must verify. PostgreSQL runs with fsync on. Writes benchmarks/store-kills-<date>.json.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sqlalchemy import select

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import save
from preference_ui.backup import verify
from preference_ui.db import open_store
from preference_ui.models import Item, Judgment
from preference_ui.projects import ItemSpec, ResponseSpec, add_items, create_project
from preference_ui.settings import ProjectSettings
from rlhf.data.schema import Message
from tests.support.postgres import running_server, store_places

WRITER = Path(__file__).parents[1] / "tests" / "ui" / "store" / "vote_writer.py"
OVERLAP = 2


def fill(url: str, count: int) -> None:
    """A project with room for ``count`` items; leases end after a second, so killed holders block nobody."""
    store = open_store(url)
    project = create_project(store, "helpline", settings=ProjectSettings(overlap=OVERLAP, lease_seconds=1))
    specs = [
        ItemSpec((Message("user", f"question {i}"),), tuple(ResponseSpec(f"{i}.{r}") for r in range(3)))
        for i in range(count)
    ]
    add_items(store, project.id, specs)
    store.close()


def acknowledged(path: Path) -> list[str]:
    """Whole lines only: what stands after the last newline was cut by the kill and never acknowledged."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


def one_round(number: int, url: str, acks: Path, rng: random.Random) -> bool:
    """Let a process vote and kill it; True when it was still at work."""
    before = len(acknowledged(acks))
    names = [f"w{number % 3}", f"v{number % 3}"]
    process = subprocess.Popen([sys.executable, str(WRITER), url, str(acks), *names])
    deadline = time.monotonic() + 60
    while len(acknowledged(acks)) < before + 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(rng.random() * 0.05)
    process.send_signal(signal.SIGKILL)
    return process.wait(timeout=30) == -signal.SIGKILL


def measure(url: str, folder: Path, rounds: int) -> dict[str, Any]:
    """All rounds on one store, and what is in it afterwards."""
    fill(url, 60 * rounds)
    acks, rng = folder / "acks", random.Random(5)
    started = time.perf_counter()
    killed = sum(one_round(number, url, acks, rng) for number in range(rounds))
    store = open_store(url)
    with store.read() as session:
        stored = Counter(session.scalars(select(Judgment.id)))
        per_lease = Counter(session.scalars(select(Judgment.lease_id)))
        over = [item.id for item in session.scalars(select(Item)) if item.done > OVERLAP]
    found = verify(store)
    store.close()
    done = acknowledged(acks)
    return {
        "rounds": rounds,
        "killed_at_work": killed,
        "acknowledged": len(done),
        "stored": len(stored),
        "acknowledged_but_lost": sum(vote not in stored for vote in done),
        "stored_twice": sum(count - 1 for count in per_lease.values()),
        "stored_without_acknowledgement": len(stored) - len(set(done) & set(stored)),
        "items_over_their_overlap": len(over),
        "verify_ok": found.ok,
        "verify_problems": found.problems[:5],
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> int:
    """Run; the exit code is 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--databases", nargs="+", choices=("sqlite", "postgresql"), default=["sqlite", "postgresql"])
    args = parser.parse_args()
    results: dict[str, Any] = {}
    for database in args.databases:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            url = str(folder / "votes.sqlite")
            if database == "postgresql":
                url = store_places(stack.enter_context(running_server(fsync=True)))()
            results[database] = measure(url, folder, args.rounds)
    save("store-kills", {"results": results})
    broken = any(r["acknowledged_but_lost"] or r["stored_twice"] or not r["verify_ok"] for r in results.values())
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
