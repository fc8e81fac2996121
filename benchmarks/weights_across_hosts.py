"""A piece of whole weights from one host to another: Ray's object store, a gloo broadcast, and a bare connection.

    python benchmarks/weights_across_hosts.py [--rounds 9] [--bytes 268435456]

Two hosts are network namespaces of this computer, with a Ray node each. Every way starts with the piece in an array of
the sending process and ends when the receiving process holds it. ``store``: put, asked for and mapped (ADR 14's way);
``gloo``: one broadcast in a process group of both; ``bare``: one TCP connection, which is as fast as bytes go. In turn,
medians. Needs the right to make network namespaces.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
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

    def put(self) -> list[Any]:
        """A reference to a copy in this host's store."""
        import ray

        self.piece[:8] += 1
        return [ray.put(self.piece)]

    def take(self, refs: list[Any]) -> int:
        """Maps what the reference stands for."""
        import ray

        return int(ray.get(refs[0])[0])

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


def measure(rounds: int, size: int) -> dict[str, list[float]]:
    """Seconds of every round, by way; runs on the first host."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(address="auto", log_to_driver=False)
    here = ray.util.get_node_ip_address()
    nodes = {node["NodeManagerAddress"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}
    there = next(address for address in nodes if address != here)
    end: Any = ray.remote(num_cpus=0.5)(End)
    ends = [
        end.options(scheduling_strategy=NodeAffinitySchedulingStrategy(nodes[address], soft=False)).remote(
            rank, here, size
        )
        for rank, address in enumerate((here, there))
    ]
    ray.get([one.join.remote() for one in ends], timeout=LIMIT_SECONDS)
    found: dict[str, list[float]] = {"store": [], "gloo": [], "bare": []}
    for number in range(rounds + 1):
        for way, seconds in found.items():
            began = time.perf_counter()
            if way == "store":
                refs = ray.get(ends[0].put.remote(), timeout=LIMIT_SECONDS)
                ray.get(ends[1].take.remote(refs), timeout=LIMIT_SECONDS)
            elif way == "gloo":
                ray.get([one.broadcast.remote() for one in ends], timeout=LIMIT_SECONDS)
            else:
                ray.get([ends[0].send.remote(), ends[1].receive.remote()], timeout=LIMIT_SECONDS)
            print(way, number, file=sys.stderr)
            if number:
                seconds.append(time.perf_counter() - began)
            if way == "store":
                del refs
    return found


def main() -> None:
    """Builds the hosts, measures on the first, writes one dated file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--bytes", type=int, default=1 << 28)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        print("FOUND " + json.dumps(measure(args.rounds, args.bytes)))
        return
    from tests.support.hosts import TwoHosts, why_not

    if reason := why_not():
        sys.exit(reason)
    hosts = TwoHosts()
    try:
        hosts.start()
        words = ["--inside", "--rounds", str(args.rounds), "--bytes", str(args.bytes)]
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
    ratios = [a / b for a, b in zip(seconds["store"], seconds["gloo"], strict=True)]
    save("weights-across-hosts", {
        "bytes": args.bytes,
        "rounds": args.rounds,
        "milliseconds": {way: round(value * 1e3, 1) for way, value in medians.items()},
        "megabytes_per_second": {way: round(args.bytes / 1e6 / value) for way, value in medians.items()},
        "store_over_gloo": round(statistics.median(ratios), 3),
    })  # fmt: skip


if __name__ == "__main__":
    main()
