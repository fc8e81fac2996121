"""Load and kill the ranking server: is every acknowledged vote stored, once, and how long does an answer take?

Two parts, both over HTTP against ``rlhf annotate`` in a process of its own:

load: 40 simulated annotators vote at a steady 10 votes per second in all. A tick that finds its annotator still waiting
    counts as late, so a slow server cannot hide behind its own slowness: times start when the vote was due.
kill: annotators vote as fast as they can while the server is killed with SIGKILL, round after round. After the last
    round every acknowledged vote must be there exactly once and the store must verify.

Run: python benchmarks/ui_load.py --rounds 50 [--database postgresql]
Writes benchmarks/ui-load-<date>.json, or ui-load-postgresql-<date>.json.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select

sys.path.insert(0, str(Path(__file__).parents[1]))

from preference_ui import auth
from preference_ui.backup import verify
from preference_ui.db import Store, open_store
from preference_ui.models import Judgment
from preference_ui.people import create_annotator
from preference_ui.projects import ItemSpec, ResponseSpec, add_items, create_project
from preference_ui.settings import ProjectSettings
from rlhf.data.schema import Message
from tests.support.postgres import running_server, store_places

PASSWORD = "load test password"


def seed(place: str, num_items: int) -> Store:
    """A store with four responses per item and room for every annotator."""
    store = open_store(place)
    project = create_project(store, "load", settings=ProjectSettings(overlap=60))
    words = ["router", "blinks", "hold", "button", "until", "the", "light", "is", "green", "and", "wait"]
    rng = random.Random(0)
    texts = [" ".join(rng.choices(words, k=80)) for _ in range(4 * num_items)]
    specs = [
        ItemSpec((Message("user", f"Question {n}?"),), tuple(ResponseSpec(t) for t in texts[4 * n : 4 * n + 4]))
        for n in range(num_items)
    ]
    add_items(store, project.id, specs)
    return store


class Server:
    """``rlhf annotate`` as a child process."""

    def __init__(self, place: str, log: Path) -> None:
        self.place, self.log = place, log
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        # Also when this program fails half-way.
        atexit.register(self.kill)

    async def start(self) -> float:
        """Start and wait; returns the seconds until it answered."""
        begin = time.monotonic()
        command = [sys.executable, "-m", "preference_ui.app.serve", "--project", "load", "--store", self.place,
                   "--port", str(self.port), "--admin", "root"]  # fmt: skip
        log = self.log.open("ab")
        self.process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | {"RLHF_ADMIN_PASSWORD": PASSWORD}
        )
        async with httpx.AsyncClient(timeout=2) as client:
            while time.monotonic() - begin < 300:
                if self.process.poll() is not None:
                    raise RuntimeError(f"the server ended; see {log.name}")
                try:
                    if (await client.get(f"{self.url}/healthz")).status_code == 200:
                        return time.monotonic() - begin
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
        raise RuntimeError("the server did not start")

    def kill(self) -> None:
        """SIGKILL: no handler runs, nothing is flushed."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


class Voter:
    """One annotator with a session; remembers every acknowledged judgment."""

    def __init__(self, server: Server, token: str, seed_: int) -> None:
        cookies = {f"rlhf_session_{server.port}": token}
        self.client = httpx.AsyncClient(
            base_url=server.url,
            cookies=cookies,
            headers={"Origin": server.url},
            timeout=30,
            limits=httpx.Limits(max_connections=1),
        )
        self.rng = random.Random(seed_)
        self.task: dict[str, Any] | None = None
        self.pending: dict[str, Any] | None = None
        self.acked: list[str] = []
        self.duplicates = 0

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        reply = await self.client.post(f"/api/{path}", json=body)
        if reply.status_code != 200:
            raise RuntimeError(f"{path}: {reply.status_code} {reply.text[:200]}")
        answer: dict[str, Any] = reply.json()
        return answer

    async def claim(self) -> None:
        """Get a task."""
        self.task = (await self._post("task", {}))["task"]

    async def vote(self) -> None:
        """Send one vote and take the next task from the answer. An unanswered vote is sent again as it was."""
        if self.pending is None:
            if self.task is None:
                await self.claim()
            if self.task is None:
                raise RuntimeError("no task is left; seed more items")
            order = list(range(len(self.task["responses"])))
            self.rng.shuffle(order)
            vote = {"tiers": [[slot] for slot in order], "active_ms": 1000}
            self.pending = {"lease": self.task["lease"], "revision": self.task["revision"], "vote": vote}
        answer = await self._post("submit", self.pending)
        self.pending = None
        self.acked.append(answer["saved"]["judgment"])
        self.duplicates += bool(answer["saved"]["duplicate"])
        self.task = answer["task"]


def login_all(store: Store, server: Server, count: int) -> list[Voter]:
    """Accounts with sessions, made in the store: hashing passwords is not what is measured."""
    voters = []
    for number in range(count):
        name = f"voter{number}"
        create_annotator(store, name, password=PASSWORD)
        voters.append(Voter(server, auth.login(store, name, PASSWORD).token, number))
    return voters


def check(store: Store, voters: list[Voter]) -> dict[str, Any]:
    """Compare what was acknowledged with what is stored."""
    acked = Counter(judgment for voter in voters for judgment in voter.acked)
    with store.read() as session:
        rows = session.execute(select(Judgment.id, Judgment.lease_id, Judgment.revision)).all()
    stored = {row.id for row in rows}
    per_vote = Counter((row.lease_id, row.revision) for row in rows)
    found = verify(store)
    return {
        "acknowledged": len(acked),
        "stored": len(rows),
        "acknowledged_but_lost": len(set(acked) - stored),
        "stored_twice": sum(count - 1 for count in per_vote.values()),
        "stored_without_acknowledgement": len(stored - set(acked)),
        "verify_ok": found.ok,
        "verify_problems": found.problems[:5],
    }


def quantile(values: list[float], share: float) -> float:
    """The value below which a share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def load(place: str, folder: Path, seconds: float, annotators: int, rate: float) -> dict[str, Any]:
    """Steady voting at ``rate`` votes per second in all."""
    store = seed(place, int(rate * seconds / annotators * 1.5) + 20)
    server = Server(place, folder / "load.log")
    started = await server.start()
    voters = login_all(store, server, annotators)
    for voter in voters:
        await voter.claim()
    waits: list[float] = []
    retries: list[int] = []
    busy = [asyncio.Lock() for _ in voters]

    async def one(index: int, due: float) -> None:
        async with busy[index]:
            while True:
                try:
                    await voters[index].vote()
                    break
                except httpx.TransportError:
                    # As the page does: the same vote again; the wait counts.
                    retries.append(index)
        waits.append(time.monotonic() - due)

    begin = time.monotonic()
    jobs = []
    for number in range(int(rate * seconds)):
        due = begin + number / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        jobs.append(asyncio.create_task(one(number % annotators, due)))
    await asyncio.gather(*jobs)
    took = time.monotonic() - begin
    server.kill()
    for voter in voters:
        await voter.client.aclose()
    return {
        "annotators": annotators, "votes": len(waits), "votes_per_second": round(len(waits) / took, 2),
        "connection_retries": len(retries),
        "server_start_seconds": round(started, 1), "submit_p50_seconds": round(quantile(waits, 0.5), 4),
        "submit_p95_seconds": round(quantile(waits, 0.95), 4), "submit_p99_seconds": round(quantile(waits, 0.99), 4),
        "submit_max_seconds": round(max(waits), 4), **check(store, voters),
    }  # fmt: skip


async def kill(place: str, folder: Path, rounds: int, annotators: int) -> dict[str, Any]:
    """Kill the server while votes are being written, ``rounds`` times."""
    store = seed(place, 40 + rounds * 6)
    server = Server(place, folder / "kill.log")
    voters: list[Voter] = []
    rng = random.Random(1)
    interrupted = 0
    for number in range(rounds):
        await server.start()
        if not voters:
            voters = login_all(store, server, annotators)

        async def vote_on(voter: Voter) -> int:
            # The limit per person is 5 writes per second in the long run; stay below it.
            while True:
                try:
                    await voter.vote()
                except httpx.TransportError:
                    return int(voter.pending is not None)
                await asyncio.sleep(rng.uniform(0.05, 0.15))

        jobs = [asyncio.create_task(vote_on(voter)) for voter in voters]
        await asyncio.sleep(rng.uniform(0.5, 1.5))
        server.kill()
        interrupted += sum(await asyncio.gather(*jobs))
        sys.stderr.write(f"\rround {number + 1} of {rounds}, {sum(len(v.acked) for v in voters)} votes acknowledged")
    await server.start()
    for voter in voters:
        if voter.pending is not None:
            await voter.vote()
    server.kill()
    for voter in voters:
        await voter.client.aclose()
    return {"rounds": rounds, "annotators": annotators, "interrupted_votes_sent_again": interrupted,
            "of_them_already_stored": sum(v.duplicates for v in voters), **check(store, voters)}  # fmt: skip


def _places(database: str, folder: Path, stack: ExitStack) -> Callable[[], str]:
    """Makes empty places for stores: files, or schemas of a PostgreSQL server started here (fsync on)."""
    if database == "postgresql":
        return store_places(stack.enter_context(running_server(fsync=True)))
    numbers = itertools.count()
    return lambda: str(folder / f"{next(numbers)}.sqlite")


def main() -> int:
    """Run both parts; the exit code is 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--annotators", type=int, default=40)
    parser.add_argument("--rate", type=float, default=10.0, help="votes per second in all")
    parser.add_argument("--rounds", type=int, default=50, help="kills; 0: leave that part out")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--out", type=Path, help="default: benchmarks/ui-load[-postgresql]-<date>.json")
    args = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        places = _places(args.database, folder, stack)
        result: dict[str, Any] = {
            "command": "python benchmarks/ui_load.py " + " ".join(sys.argv[1:]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "cpus": os.cpu_count(),
            "database": args.database,
            "load_average_at_start": round(os.getloadavg()[0], 1),
            "load": asyncio.run(load(places(), folder, args.seconds, args.annotators, args.rate)),
        }
        if args.rounds:
            result["kill"] = asyncio.run(kill(places(), folder, args.rounds, 8))
        result["load_average_at_end"] = round(os.getloadavg()[0], 1)
    text = json.dumps(result, indent=1)
    print(text)
    name = "ui-load" if args.database == "sqlite" else f"ui-load-{args.database}"
    out = args.out or Path(__file__).with_name(f"{name}-{datetime.now(UTC):%Y-%m-%d}.json")
    out.write_text(text + "\n", encoding="utf-8")
    parts = [result[name] for name in ("load", "kill") if name in result]
    broken = any(p["acknowledged_but_lost"] or p["stored_twice"] or not p["verify_ok"] for p in parts)
    return int(broken or result["load"]["submit_p95_seconds"] > 1.0)


if __name__ == "__main__":
    sys.exit(main())
