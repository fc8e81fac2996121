"""Waiting for the nodes of a real cluster: one that joins late, and one that never does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

SCRIPT = """
import subprocess, sys
from ray.cluster_utils import Cluster
cluster = Cluster()
words = [sys.executable, "-m", "cluster.joined", "--address"]
try:
    cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    words += [cluster.address, sys.argv[1], "two"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as waiting:
        print("before:", waiting.stdout.readline(), flush=True)
        cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        print("after:", waiting.stdout.readline(), flush=True)
    print("all:", waiting.returncode, flush=True)
    fewer = subprocess.run([*words, "three", "--timeout-seconds", "1"], stdout=subprocess.PIPE, text=True, check=False)
    print(fewer.stdout, "fewer:", fewer.returncode, flush=True)
finally:
    cluster.shutdown()
"""


def test_a_late_node_is_waited_for_and_a_missing_one_is_named() -> None:
    environment = {**os.environ, "RAY_worker_niceness": "0", "RAY_AUTH_TOKEN": "the-token-of-this-test-cluster"}
    environment["RAY_AUTH_MODE"] = "token"
    done = subprocess.run([sys.executable, "-c", SCRIPT, socket.gethostname()], env=environment, capture_output=True,
                          text=True, timeout=300, check=False)  # fmt: skip
    told = done.stdout
    assert "before: 1 of 2 node(s)" in told and "after: 2 of 2 node(s)" in told, told + done.stderr[-2000:]
    assert "all: 0" in told and "fewer: 2" in told, told
    assert "2 of 3 nodes have joined within 1 s; missing: two, three" in told, told
