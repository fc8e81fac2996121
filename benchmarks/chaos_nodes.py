"""A node of a real Ray cluster is killed while a PPO run uses it."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from benchmarks.chaos_common import Row, folder, longest, tiny
from rlhf.stages import ppo
from tests.support.chaos_runs import chaos_config, differences, outcome_of

NOTICE_SECONDS = 10.0


@contextmanager
def two_nodes() -> Iterator[tuple[Cluster, Any]]:
    """A cluster of this machine with two raylets, either of which could carry the whole run."""
    size = {"num_cpus": 8, "object_store_memory": 200 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=size)
    try:
        second = cluster.add_node(**size)
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
        yield cluster, second
    finally:
        ray.shutdown()
        cluster.shutdown()


def kill_when(cluster: Cluster, node: Any, metrics: Path, rows: int, struck: list[float]) -> None:
    """Kills a node and all its workers once the run has written so many rows of metrics."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if metrics.is_file() and len(metrics.read_text(encoding="utf-8").splitlines()) >= rows:
            struck.append(time.time())
            cluster.remove_node(node, allow_graceful=False)
            return
        time.sleep(0.05)


def node_kills(quick: bool) -> list[Row]:
    """R07: SIGKILL for a node that holds ranks and rollout workers; the run finishes on the rest."""
    changes = {"num_steps": 4, "placement.strategy": "SPREAD", "recovery.max_restarts": 3}
    injected = detected = recovered = lost = 0
    slowest, details = 0.0, []
    with folder() as place:
        base = tiny(place)
        with two_nodes():
            config = chaos_config(base, place / "whole", **changes)
            whole = outcome_of(place / "whole", ppo.run_ppo(config), {})
        for number in range(1 if quick else 2):
            run_dir, struck = place / f"run-{number}", []
            config = chaos_config(base, run_dir, **changes)
            with two_nodes() as (cluster, second):
                watch = threading.Thread(
                    target=kill_when, args=(cluster, second, run_dir / "metrics.jsonl", number + 1, struck)
                )
                watch.start()
                found = outcome_of(run_dir, ppo.run_ppo(config), {})
                watch.join()
            injected += len(struck)
            faults = [e for e in found.events if e["event"] == "fault_detected"]
            first = min((e["time"] - struck[0] for e in faults), default=float("inf")) if struck else float("inf")
            detected += first <= NOTICE_SECONDS
            differing = differences(whole, found)
            recovered += not differing
            lost += len(differing)
            slowest = max(slowest, longest(found.events) or 0.0)
            details.append({"noticed_after": round(first, 2), "faults": [e["fault"] for e in faults],
                            "differences": differing[:20], "restarts": found.summary["restarts"]})  # fmt: skip
    note = f"noticed within {NOTICE_SECONDS:g} s; metrics and adapters equal to the run without faults"
    row = Row("R07", "SIGKILL of a node", injected, detected, recovered, lost, slowest, note, {"runs": details})
    return [row]


SECTIONS = {"R07": node_kills}


if __name__ == "__main__":
    print(json.dumps([row.__dict__ for row in node_kills(True)], indent=1))
