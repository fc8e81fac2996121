"""A program on a Ray cluster of two nodes: pieces between their stores, a frozen member, and a whole PPO run.

Run as ``python -m tests.support.two_nodes BASE FOLDER``; its last line is ``FOUND`` and a JSON object.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.experimental import get_object_locations

from rlhf.config import PlacementConfig, RecoveryConfig
from rlhf.errors import WeightSyncError
from rlhf.telemetry.events import EventLog, read_events
from rlhf.workers.group import WorkerGroup
from rlhf.workers.lean import lean_imports
from rlhf.workers.placement import Beside

with lean_imports():
    import torch

    from rlhf.stages.ppo import run_ppo
    from rlhf.weights.snapshot import Snapshot, pack, verify
    from rlhf.workers.between_hosts import BetweenHosts
    from rlhf.workers.shipped import Shipped
    from tests.support.ppo import finished, tiny_config

PIECES = (3_000_000, 1_000_003, 16)
"""Numbers per piece: sizes differ, so a member must not trust the last one."""
LIMIT = 6.0


class Holder:
    """Takes pieces on its node."""

    def __init__(self, context: Any) -> None:
        torch.set_num_threads(1)

    def take(self, *parts: Snapshot) -> list[str]:
        for part in parts:
            verify(part, {entry.name: torch.empty(entry.shape) for entry in part.entries})
        return [part.sha256 for part in parts]


def snapshots(version: int) -> list[Snapshot]:
    generator = torch.Generator().manual_seed(version)
    return [pack({"w": torch.randn(count, generator=generator)}, version) for count in PIECES]


def carry(between: BetweenHosts, nodes: list[str], version: int) -> tuple[list[Snapshot], dict[str, list[Shipped]]]:
    parts = snapshots(version)
    shipped = [Shipped.put(part) for part in parts]
    between.send(nodes[0], nodes, [one.buffer for one in shipped])
    return parts, between.receive([one.header for one in shipped])


def pieces(nodes: list[str], folder: Path) -> dict[str, Any]:
    """Whole, in the other node's store, checked there; and what becomes of a version whose carrier is frozen."""
    folder.mkdir()
    recovery = RecoveryConfig(sync_timeout_seconds=LIMIT)
    placement = PlacementConfig(cpus_per_worker=0.1)
    between = BetweenHosts(placement, recovery, str(folder), EventLog(folder))
    holder = WorkerGroup.launch(Holder, "holder", size=1, placement=placement, run_dir=str(folder),
                                reservation=Beside((nodes[1],)))  # fmt: skip
    found: dict[str, Any] = {}
    try:
        parts, there = carry(between, nodes, 1)
        own = there[nodes[1]]
        found["hosts"] = list(there)
        found["lie_on"] = [get_object_locations([one.buffer])[one.buffer]["node_ids"] for one in own]
        found["taken"] = holder.call("take", *own) == [[part.sha256 for part in parts]]
        first = between._group
        parts, there = carry(between, nodes, 2)
        found["same_group"] = between._group is first
        found["taken_again"] = holder.call("take", *there[nodes[1]]) == [[part.sha256 for part in parts]]
        damaged = [replace(one, header=replace(one.header, sha256="0" * 64)) for one in there[nodes[1]]]
        try:
            holder.call("take", *damaged)
        except WeightSyncError as error:
            found["damaged"] = f"{type(error).__name__}: {error}"
        assert first is not None
        pids = list(first.pids)
        os.kill(pids[1], signal.SIGSTOP)
        began = time.monotonic()
        found["with_a_frozen_member"] = len(carry(between, nodes, 3)[1])
        found["noticed_after"] = time.monotonic() - began
        parts, there = carry(between, nodes, 4)
        found["taken_after"] = holder.call("take", *there[nodes[1]]) == [[part.sha256 for part in parts]]
        found["old_members_left"] = [pid for pid in pids if is_running(pid)]
        found["alone"] = len(carry(between, nodes[:1], 5)[1])
        found["events"] = [line["event"] for line in read_events(folder)]
    finally:
        between.close()
        holder.close()
    return found


def is_running(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z":
                return False
        except FileNotFoundError:
            return False
        time.sleep(0.1)
    return True


def whole_run(base: Path, folder: Path, address: str) -> dict[str, Any]:
    """A policy trained whole, its rank and its rollout worker on different nodes."""
    changes = {"policy_weights": "full", "optim.learning_rate": 3e-4, "critic_learning_rate": 1e-3,
               "sync_chunk_bytes": 20_000, "placement.num_rollout_workers": 1,
               "placement.strategy": "STRICT_SPREAD", "placement.layout": "split",
               "placement.ray_address": address, "placement.rank_labels": ["side=trainer"],
               "placement.rollout_labels": ["side=rollout"]}  # fmt: skip
    config = tiny_config(base, folder / "run", **changes)
    rows = finished(config, run_ppo(config), []).rows
    keys = ("sync.broadcast_hosts", "sync.max_logprob_diff", "sync.bytes", "adapter_version")
    return {key: [row[key] for row in rows] for key in keys}


def main() -> None:
    """Both, on one cluster."""
    base, folder = Path(sys.argv[1]), Path(sys.argv[2])
    cluster = Cluster()
    try:
        for side in ("trainer", "rollout"):
            cluster.add_node(num_cpus=2, object_store_memory=150 * 2**20, labels={"side": side})
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
        here = ray.get_runtime_context().get_node_id()
        nodes = [here, *(node["NodeID"] for node in ray.nodes() if node["NodeID"] != here)]
        found = {"pieces": pieces(nodes, folder / "pieces")}
        found["there"] = nodes[1]
        ray.shutdown()
        found["run"] = whole_run(base, folder, cluster.address)
        print("FOUND " + json.dumps(found))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
