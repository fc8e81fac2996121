"""Places on a real cluster: taken, waited for within a bound, refused with a table, given back."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from rlhf.config import PlacementConfig
from rlhf.errors import ConfigError, WorkerError
from rlhf.workers.group import WorkerGroup, share
from rlhf.workers.placement import Ask, reserve
from rlhf.workers.runtime import cluster_address

PROBE = "tests.support.workers:Probe"


def free_cpus() -> float:
    return ray.available_resources().get("CPU", 0.0)


def settled(amount: float) -> bool:
    deadline = time.monotonic() + 10
    while free_cpus() != amount and time.monotonic() < deadline:
        time.sleep(0.1)
    return free_cpus() == amount


def test_what_can_never_be_is_refused_at_once_with_a_table(ray_session: dict[str, float], tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        WorkerGroup.launch(PROBE, "probe", size=1, placement=PlacementConfig(cpus_per_worker=99),
                           run_dir=str(tmp_path), args=("hello",))  # fmt: skip
    assert time.monotonic() - started < 5
    text, total = str(caught.value), ray_session["CPU"]
    assert f"the cluster has {total:g} CPU, 99 are asked for" in text
    assert [line.split()[1] for line in text.splitlines() if line.split()[0] == "CPU"] == ["99"]
    assert "placement.wait_for_nodes=true" in text
    with pytest.raises(ConfigError, match="0 GPU, 2 are asked for"):
        reserve(PlacementConfig(), [Ask("policy", 2, {"CPU": 1.0, "GPU": 1.0})])
    with pytest.raises(ConfigError, match="STRICT_SPREAD needs 2 nodes"):
        reserve(PlacementConfig(strategy="STRICT_SPREAD"), [Ask("policy", 2, {"CPU": 1.0})])
    with pytest.raises(ConfigError, match="with role=trainer"):
        reserve(PlacementConfig(), [Ask("policy", 1, {"CPU": 1.0}, {"role": "trainer"})])


def test_busy_resources_are_waited_for_within_the_bound(ray_session: dict[str, float]) -> None:
    free = free_cpus()
    first = reserve(PlacementConfig(), [Ask("policy", 1, {"CPU": free - 1})])
    try:
        assert settled(1.0)
        started = time.monotonic()
        with pytest.raises(WorkerError, match=r"no place within 2 s (.|\n)*CPU: 2 asked, 1 free(.|\n)*asked") as caught:
            reserve(PlacementConfig(start_timeout_seconds=2), [Ask("rollout", 1, {"CPU": 2.0})])
        assert 1 < time.monotonic() - started < 8 and caught.value.role == "rollout"
    finally:
        first.close()
    reserve(PlacementConfig(start_timeout_seconds=10), [Ask("rollout", 1, {"CPU": 2.0})]).close()
    assert settled(free), "everything was given back, also by the one that failed"


def test_an_autoscaling_cluster_is_given_its_time(ray_session: dict[str, float]) -> None:
    placement = PlacementConfig(start_timeout_seconds=2, wait_for_nodes=True)
    started = time.monotonic()
    with pytest.raises(WorkerError, match=r"no place within 2 s (.|\n)*99 are asked for"):
        reserve(placement, [Ask("policy", 1, {"CPU": 99.0})])
    assert time.monotonic() - started >= 1


def test_places_that_were_held_before_are_waited_for_and_their_loss_is_a_fault(ray_session: dict[str, float]) -> None:
    """A node is gone, so the cluster cannot hold it now: at a first start that would be a mistake in the config."""
    ask, placement = [Ask("policy", 1, {"CPU": 99.0})], PlacementConfig(start_timeout_seconds=2)
    with pytest.raises(ConfigError):
        reserve(placement, ask)
    started = time.monotonic()
    with pytest.raises(WorkerError, match=r"no place within 2 s (.|\n)*99 are asked for") as caught:
        reserve(placement, ask, again=True)
    assert time.monotonic() - started >= 1 and caught.value.is_infrastructure


def test_roles_reserve_together_and_groups_sit_there(ray_session: dict[str, float], tmp_path: Path) -> None:
    free = free_cpus()
    placement = PlacementConfig(layout="colocated", start_timeout_seconds=60, cpus_per_worker=0.5)
    asks = [Ask.of(role, 1, placement, 0.0) for role in ("policy", "rollout")]
    places = reserve(placement, asks)
    groups = []
    try:
        assert settled(free - 1)
        for role in ("policy", "rollout"):
            group = WorkerGroup.launch(PROBE, role, size=1, placement=placement,
                                       run_dir=str(tmp_path), args=(share("hi"),), reservation=places)  # fmt: skip
            groups.append(group)
            assert group.call("echo", 1) == [("hi", 0, 1, 1)]
        assert settled(free - 1), "both sit in the one bundle"
    finally:
        for group in groups:
            group.close()
        places.close()
    assert settled(free)


def test_a_driver_inside_a_job_joins_its_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster_address(PlacementConfig()) is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert cluster_address(PlacementConfig()) == "10.0.0.1:6379"
    assert cluster_address(PlacementConfig(ray_address="auto")) == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "http://10.0.0.1:8265")  # where jobs go, not where this process belongs
    assert cluster_address(PlacementConfig()) is None


def test_a_cluster_that_cannot_be_joined_is_told_at_once() -> None:
    """In a process of its own: this one has a runtime already."""
    code = (
        "from rlhf.config import PlacementConfig; from rlhf.workers.runtime import ray_runtime\n"
        "try:\n  ray_runtime(PlacementConfig(ray_address='127.0.0.1:9'), num_workers=1).__enter__()\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "ConfigError placement.ray_address=127.0.0.1:9" in done.stdout and "auth_token" in done.stdout
    assert time.monotonic() - started < 30
