"""A Ray node that is killed and comes back: survivors go on meanwhile, and what had places there waits for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.lost_node import AWAY_SECONDS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_worker_niceness": "0"}
    environment["RAY_AUTH_TOKEN"] = "the-token-of-this-test-cluster"
    words = [sys.executable, "-m", "tests.support.lost_node", str(tmp_path_factory.mktemp("lost"))]
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    line = next((s for s in done.stdout.splitlines() if s.startswith("FOUND ")), None)
    assert line is not None, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(line.removeprefix("FOUND "))


def test_data_that_was_on_it_is_a_fault_that_other_processes_may_cure(found: dict[str, Any]) -> None:
    assert found["answer"].startswith("died: Object") and found["argument"].startswith("lost: Object")


def test_survivors_do_not_wait_for_a_lost_node(found: dict[str, Any]) -> None:
    assert found["two_versions_seconds"] < 10, "a start without a place would take placement.start_timeout_seconds"
    assert found["while_away"] == {"living": 1, "restarts": 0}


def test_a_node_that_comes_back_has_its_worker_again(found: dict[str, Any]) -> None:
    assert found["afterwards"] == {"living": 2, "restarts": 1}
    assert found["events"] == ["fault_detected", "fault_resolved"]


def test_places_that_were_held_are_waited_for(found: dict[str, Any]) -> None:
    assert found["at_a_first_start"].startswith("STRICT_SPREAD needs 2 nodes")
    assert found["still_waits"] and found["again_seconds"] > AWAY_SECONDS
