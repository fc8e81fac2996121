"""A program on a Ray cluster whose second node is killed and comes back: places, and a fleet that had one there.

Run as ``python -m tests.support.lost_node FOLDER``; its last line is ``FOUND`` and a JSON object.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster

from rlhf.config import PlacementConfig, RecoveryConfig
from rlhf.errors import ConfigError, WorkerError
from rlhf.telemetry.events import EventLog, read_events
from rlhf.workers.fleet import RolloutFleet
from rlhf.workers.group import WorkerGroup
from rlhf.workers.placement import Ask, Beside, cluster_nodes, reserve
from tests.support.chaos_faults import light_version

PLACEMENT = PlacementConfig(strategy="STRICT_SPREAD", start_timeout_seconds=60)
ROLLOUTS = [Ask("rollout", 2, {"CPU": 1.0})]
AWAY_SECONDS = 4.0


def wait_for(number: int) -> None:
    """Until the cluster has so many nodes."""
    deadline = time.monotonic() + 60
    while len(cluster_nodes()) != number and time.monotonic() < deadline:
        time.sleep(0.1)


def prober(node_id: str, folder: Path) -> WorkerGroup:
    """A worker that gives back what it is given, on a node."""
    return WorkerGroup.launch("tests.support.workers:Probe", "probe", size=1, placement=PLACEMENT, run_dir=str(folder),
                              args=("hello",), reservation=Beside((node_id,)))  # fmt: skip


def fault_of(call: Callable[[], Any]) -> str:
    """The fault in which a call ends, and what Ray had to say."""
    try:
        call()
    except WorkerError as error:
        return f"{error.fault}: {error.cause.split(':')[0]}"
    return "none"


def scenes(cluster: Cluster, second: Any, folder: Path) -> dict[str, Any]:
    """What is asked while the node is away, and after it is back."""
    found: dict[str, Any] = {}
    places = reserve(PLACEMENT, ROLLOUTS)

    def launch(size: int, first: int) -> WorkerGroup:
        return WorkerGroup.launch("tests.support.chaos_faults:LightRollout", "rollout", size=size, placement=PLACEMENT,
                                  run_dir=str(folder), first_rank=first, reservation=places)  # fmt: skip

    fleet = RolloutFleet(launch(2, 0), lambda rank: launch(1, rank), RecoveryConfig(), EventLog(folder))
    fleet.install([light_version("a")])
    here = ray.get_runtime_context().get_node_id()
    there = next(node.node_id for node in cluster_nodes() if node.node_id != here)
    far, near = prober(there, folder), prober(here, folder)
    refs = far.submit("echo", [(np.zeros(1 << 20, dtype=np.uint8),)])  # a small answer would come with the reply
    ray.wait(refs, timeout=30, fetch_local=False)
    cluster.remove_node(second, allow_graceful=False)
    wait_for(1)
    found["argument"] = fault_of(lambda: near.call("echo", refs[0]))
    found["answer"] = fault_of(lambda: far.wait(refs))
    near.close()
    far.close()
    began = time.monotonic()
    for name in "bc":
        fleet.install([light_version(name)])
    found["two_versions_seconds"] = time.monotonic() - began
    found["while_away"] = {"living": len(fleet.living), "restarts": fleet.num_restarts}
    try:
        reserve(PLACEMENT, ROLLOUTS)
    except ConfigError as error:
        found["at_a_first_start"] = str(error).splitlines()[0]
    with ThreadPoolExecutor(1) as beside:  # Ray starts nodes from the main thread only
        began = time.monotonic()
        asked = beside.submit(reserve, PLACEMENT, ROLLOUTS, again=True)
        time.sleep(AWAY_SECONDS)
        found["still_waits"] = not asked.done()
        cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20)
        asked.result().close()
        found["again_seconds"] = time.monotonic() - began
    deadline = time.monotonic() + 60
    while places.lost("rollout", range(2)) and time.monotonic() < deadline:
        time.sleep(0.2)
    fleet.install([light_version("d")])
    found["afterwards"] = {"living": len(fleet.living), "restarts": fleet.num_restarts}
    found["events"] = [event["event"] for event in read_events(folder)]
    fleet.close()
    places.close()
    return found


def main() -> None:
    """All on one cluster."""
    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20)
        second = cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20)
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
        wait_for(2)
        print("FOUND " + json.dumps(scenes(cluster, second, Path(sys.argv[1]))))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
