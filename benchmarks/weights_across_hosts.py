"""Whole weights from one host to another: Ray's object store, our broadcast group, bare gloo, and a bare connection.

    python benchmarks/weights_across_hosts.py [--rounds 9] [--pieces 3] [--bytes 134217728]

Two hosts are network namespaces of this computer, with a Ray node each. Every way starts with a version of ``--pieces``
pieces in arrays of the sending process and ends when the receiving process holds them. ``store``: put and asked for
(``sync_between_hosts: store``); ``group``: put, carried by the group, and mapped from the other host's store
(``sync_between_hosts: gloo``); ``gloo``: bare broadcasts from array to array in a process group of both ends; ``bare``:
one TCP connection, which is as fast as bytes go. In turn, medians. Needs the right to make network namespaces.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from common import save

PORT = 29_777
CHUNK = 1 << 22
LIMIT_SECONDS = 60.0


class End:
    """A process on one of the hosts."""

    def __init__(self, rank: int, address: str, size: int) -> None:
        import torch

        torch.set_num_threads(1)
        self.rank, self.address = rank, address
        self.piece = np.full(size, rank + 1, dtype=np.uint8)
        os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(PORT), GLOO_SOCKET_IFNAME="eth0")

    def join(self) -> None:
        """The process group of both ends."""
        import torch

        torch.distributed.init_process_group("gloo", rank=self.rank, world_size=2)

    def put(self) -> np.ndarray:
        """A piece, which the caller gets a reference to: it is copied to this host's store."""
        self.piece[:8] += 1
        return self.piece

    def take(self, refs: list[Any]) -> list[int]:
        """Maps what the references stand for."""
        import ray

        return [int(piece[0]) for piece in ray.get(refs)]

    def broadcast(self) -> None:
        """One piece from rank 0."""
        import torch

        torch.distributed.broadcast(torch.from_numpy(self.piece), 0)

    def send(self) -> None:
        """The piece to whoever connects."""
        with socket.create_server((self.address, PORT + 1)) as server:
            server.settimeout(30)
            line, _ = server.accept()
            with line:
                line.sendall(self.piece)

    def receive(self) -> None:
        """The piece from the other end."""
        line = self._connect()
        view, at = memoryview(self.piece), 0
        with line:
            while at < len(view):
                at += line.recv_into(view[at : at + CHUNK])

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + 30
        while True:
            try:
                return socket.create_connection((self.address, PORT + 1), timeout=30)
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.002)


def measure(rounds: int, pieces: int, size: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of every round, by way; runs on the first host."""
    import ray

    from rlhf.config import PlacementConfig, RecoveryConfig
    from rlhf.telemetry.events import EventLog, read_events
    from rlhf.weights.snapshot import Header
    from rlhf.workers.between_hosts import BetweenHosts
    from rlhf.workers.placement import Beside

    ray.init(address="auto", log_to_driver=False)
    here = ray.util.get_node_ip_address()
    nodes = {node["NodeManagerAddress"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}
    there = next(address for address in nodes if address != here)
    end: Any = ray.remote(num_cpus=0.5)(End)
    seats = Beside((nodes[here], nodes[there])).seats("end")
    ends = [end.options(**seat).remote(rank, here, size) for rank, seat in enumerate(seats)]
    ray.get([one.join.remote() for one in ends], timeout=LIMIT_SECONDS)
    between = BetweenHosts(PlacementConfig(), RecoveryConfig(), str(folder), EventLog(folder))
    headers = [Header(0, (), size, "") for _ in range(pieces)]
    found: dict[str, list[float]] = {"store": [], "group": [], "gloo": [], "bare": []}
    for number in range(rounds + 1):
        for way, seconds in found.items():
            began = time.perf_counter()
            refs: list[Any] = []
            if way in ("store", "group"):
                refs = [ends[0].put.remote() for _ in range(pieces)]
                if way == "group":
                    between.send(nodes[here], nodes.values(), refs)
                    refs = [part.buffer for part in between.receive(headers)[nodes[there]]]
                ray.get(ends[1].take.remote(refs), timeout=LIMIT_SECONDS)
            for _ in range(0 if refs else pieces):
                if way == "gloo":
                    ray.get([one.broadcast.remote() for one in ends], timeout=LIMIT_SECONDS)
                else:
                    ray.get([ends[0].send.remote(), ends[1].receive.remote()], timeout=LIMIT_SECONDS)
            print(way, number, file=sys.stderr)
            if number:
                seconds.append(time.perf_counter() - began)
            del refs
    between.close()
    if read_events(folder):
        raise SystemExit(f"the group failed: {read_events(folder)}")
    return found


def main() -> None:
    """Builds the hosts, measures on the first, writes one dated file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pieces", type=int, default=3)
    parser.add_argument("--bytes", type=int, default=1 << 27, help="of a piece")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        with tempfile.TemporaryDirectory() as folder:
            print("FOUND " + json.dumps(measure(args.rounds, args.pieces, args.bytes, Path(folder))))
        return
    from tests.support.hosts import TwoHosts, why_not

    if reason := why_not():
        sys.exit(reason)
    hosts = TwoHosts(store_bytes=4 * args.pieces * args.bytes)  # none of it is to go to the disk
    try:
        hosts.start()
        words = ["--inside", "--rounds", str(args.rounds), "--pieces", str(args.pieces), "--bytes", str(args.bytes)]
        done = hosts.run(
            "first", [sys.executable, str(Path(__file__).resolve()), *words], cwd=Path(__file__).parents[1]
        )
    finally:
        hosts.close()
    line = next((line for line in done.stdout.splitlines() if line.startswith("FOUND ")), None)
    if line is None:
        sys.exit(f"the measurement failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    seconds = json.loads(line.removeprefix("FOUND "))
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    whole = args.pieces * args.bytes

    def ratio(slow: str, fast: str) -> float:
        return round(statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)), 3)

    save("weights-across-hosts", {
        "bytes": whole,
        "pieces": args.pieces,
        "rounds": args.rounds,
        "milliseconds": {way: round(value * 1e3, 1) for way, value in medians.items()},
        "megabytes_per_second": {way: round(whole / 1e6 / value) for way, value in medians.items()},
        "store_over_group": ratio("store", "group"),
        "group_over_bare": ratio("group", "bare"),
    })  # fmt: skip


if __name__ == "__main__":
    main()
