"""The doctor inside a real cluster of two nodes, and what it says of nodes that differ."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from cluster.checks.on_cluster import Node as ClusterNode
from cluster.checks.on_cluster import judge_clocks, judge_run_dir, labels

SCRIPT = """
import json, sys, logging
import ray
from ray.cluster_utils import Cluster
from cluster.checks.on_cluster import examine
cluster = Cluster()
try:
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    print("RECORDS " + json.dumps([r.as_dict() for r in examine(sys.argv[1])]))
finally:
    ray.shutdown()
    cluster.shutdown()
"""


def test_two_nodes(tmp_path: Path) -> None:
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_worker_niceness": "0"}
    environment["RAY_AUTH_TOKEN"] = "the-token-of-this-test-cluster"
    run_dir = tmp_path / "runs"
    run_dir.mkdir()
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(run_dir)], env=environment, capture_output=True, text=True,
                          timeout=200, check=False)  # fmt: skip
    line = next((s for s in done.stdout.splitlines() if s.startswith("RECORDS ")), None)
    assert line is not None, done.stdout[-2000:] + done.stderr[-2000:]
    records = {r["name"]: r for r in json.loads(line.removeprefix("RECORDS "))}
    print(json.dumps(records, indent=1))
    assert records["nodes"]["detail"].startswith("2:")
    for name in ("versions on nodes", "clocks", "object store", "gloo between nodes", "run directory"):
        assert records[name]["status"] == "ok", records[name]
    assert "2 rank(s)" in records["gloo between nodes"]["detail"]
    assert list(run_dir.iterdir()) == [], "the doctor leaves nothing behind"


def test_clocks_that_differ() -> None:
    assert judge_clocks({"a": 0.0, "b": 0.002}).status == "ok"
    late = judge_clocks({"a": 0.0, "b": 0.001, "c": -4.0})
    assert late.status == "warn" and "c is -4.0" in late.detail and "set-ntp" in late.remedy
    assert judge_clocks({"a": 0.0, "b": 0.0, "c": 120.0}).status == "fail"


def test_a_run_directory_that_is_not_shared() -> None:
    seen = {"driver", "0"}
    assert judge_run_dir("/runs", {"a": (True, ""), "b": (False, "")}, seen).status == "warn"
    refused = judge_run_dir("/runs", {"a": (True, ""), "b": (True, "Permission denied")}, seen)
    assert refused.status == "fail" and "b (Permission denied)" in refused.detail
    assert judge_run_dir("/runs", {"a": (True, ""), "b": (True, "")}, seen | {"1"}).status == "ok"


def test_nodes_on_one_address_are_told_apart() -> None:
    nodes = [ClusterNode("x", "10.0.0.1", 0), ClusterNode("y", "10.0.0.1", 0), ClusterNode("z", "10.0.0.2", 1)]
    assert labels(nodes) == ["10.0.0.1#1", "10.0.0.1#2", "10.0.0.2"]
