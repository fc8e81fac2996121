"""Whole weights between the stores of two Ray nodes by a broadcast group, and what happens when it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_worker_niceness": "0"}
    environment["RAY_AUTH_TOKEN"] = "the-token-of-this-test-cluster"
    words = [str(tiny_model_dir), str(tmp_path_factory.mktemp("between"))]
    done = subprocess.run([sys.executable, "-m", "tests.support.two_nodes", *words], env=environment, cwd=ROOT,
                          capture_output=True, text=True, timeout=400, check=False)  # fmt: skip
    line = next((s for s in done.stdout.splitlines() if s.startswith("FOUND ")), None)
    assert line is not None, done.stdout[-3000:] + done.stderr[-3000:]
    told = json.loads(line.removeprefix("FOUND "))
    print(json.dumps(told, indent=1))
    return told


def test_pieces_lie_whole_in_the_other_nodes_store_and_nowhere_else(found: dict[str, Any]) -> None:
    pieces, there = found["pieces"], found["there"]
    assert pieces["hosts"] == [there]
    assert pieces["lie_on"] == [[there]] * 2 + [[]], "the smallest travels with its reference"
    assert pieces["taken"] and pieces["taken_again"] and pieces["same_group"]
    assert "WeightSyncError" in pieces["damaged"] and "other bytes" in pieces["damaged"]
    assert pieces["alone"] == 0, "one host needs no group"


def test_a_frozen_member_costs_one_version_its_speed_and_is_replaced(found: dict[str, Any]) -> None:
    pieces = found["pieces"]
    assert pieces["with_a_frozen_member"] == 0, "the version goes by the store"
    assert 5 < pieces["noticed_after"] < 30
    assert pieces["taken_after"], "the next version has a new group"
    assert pieces["old_members_left"] == []
    assert pieces["events"] == ["fault_detected", "fault_resolved"]


def test_a_policy_trained_whole_reaches_a_rollout_worker_on_another_node(found: dict[str, Any]) -> None:
    run = found["run"]
    assert run["sync.broadcast_hosts"] == [1.0, 1.0]
    assert all(value <= 1e-4 for value in run["sync.max_logprob_diff"])
    assert run["adapter_version"] == [1, 2]
