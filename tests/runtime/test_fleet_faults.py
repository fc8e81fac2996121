"""Rollout workers without a model are killed, frozen and slow: the fleet draws all once, or says why it cannot."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rlhf.config import PlacementConfig, RecoveryConfig, SamplingConfig
from rlhf.errors import ConfigError, RolloutFleetExhausted, WorkerError
from rlhf.stages import ppo
from rlhf.telemetry.events import EventLog, read_events
from rlhf.workers.fleet import RolloutFleet
from rlhf.workers.group import WorkerGroup
from tests.support.chaos_faults import Faults, LostVersion, light_version
from tests.support.chaos_runs import chaos_config, require_victims
from tests.support.runtime import gone

LIGHT = "tests.support.chaos_faults:LightRollout"
SLOW = "tests.support.chaos_faults:SlowRollout"
PLACEMENT = PlacementConfig(num_ranks=1, start_timeout_seconds=300)


@contextmanager
def fleet_of(
    run_dir: Path,
    size: int,
    recovery: RecoveryConfig,
    draw_seconds: float = 0.0,
    *,
    slow_ranks: tuple[int, ...] | None = None,
) -> Iterator[RolloutFleet]:
    """A real fleet of real processes that hold no model; where ranks are slow, they beat while they draw."""
    run_dir.mkdir(parents=True, exist_ok=True)
    groups: list[WorkerGroup] = []

    def launch(size: int, first_rank: int) -> WorkerGroup:
        where = {"placement": PLACEMENT, "run_dir": str(run_dir), "first_rank": first_rank}
        worker, args = (LIGHT, (draw_seconds,)) if slow_ranks is None else (SLOW, (draw_seconds, slow_ranks))
        group = WorkerGroup.launch(worker, "rollout", size=size, args=args, **where)
        groups.append(group)
        return group

    try:
        yield RolloutFleet(launch(size, 0), lambda rank: launch(1, rank), recovery, EventLog(run_dir))
    finally:
        for group in groups:
            group.close()


def test_when_every_replacement_dies_the_run_ends(ray_session: dict[str, float], tmp_path: Path) -> None:
    faults = Faults(tmp_path / "run")
    with fleet_of(tmp_path / "run", 1, RecoveryConfig(max_rollout_restarts=2)) as fleet:
        fleet.install([light_version("a")])
        faults.arm("generate-0")
        faults.arm("build", times=2)
        began = time.monotonic()
        with pytest.raises(RolloutFleetExhausted, match="no rollout worker is left after 2 restarts") as caught:
            tasks: list[Any] = ["x"]
            fleet.collect(fleet.submit(tasks, SamplingConfig(), 0))
        assert time.monotonic() - began < 60 and caught.value.exit_code == 3
    require_victims(tmp_path / "run")
    events = [e["event"] for e in read_events(tmp_path / "run")]
    assert events == ["fault_detected", "fault_fatal"]


def test_a_replacement_draws_nothing_before_the_current_adapter(ray_session: dict[str, float], tmp_path: Path) -> None:
    """Killed while drawing: one of two, then both; killed while they take a newer adapter: both."""
    faults = Faults(tmp_path / "run")
    tasks: list[Any] = list(range(8))
    pids: list[int] = []
    with fleet_of(tmp_path / "run", 2, RecoveryConfig()) as fleet:
        for version, (sha, killed) in enumerate([("a", 1), ("b", 2), ("c", 1)]):
            if version == 2:
                faults.arm("install", times=2)
            fleet.install([light_version(sha)])
            faults.arm(f"generate-{version}", times=killed)
            answers: list[Any] = fleet.collect(fleet.submit(tasks, SamplingConfig(), version))
            assert [task for task, _, _ in answers] == tasks, "all, once, in order"
            assert {held for _, held, _ in answers} == {sha}
            pids += [pid for _, _, pid in answers]
        assert fleet.num_restarts == 5, "one, then two, then two; the last dead one is not needed any more"
    require_victims(tmp_path / "run")
    assert gone(pids)


def test_a_version_that_is_lost_costs_no_rollout_worker(ray_session: dict[str, float], tmp_path: Path) -> None:
    """The rank that held it is gone: no replacement could fetch it, and the run rebuilds the ranks."""
    with fleet_of(tmp_path / "run", 1, RecoveryConfig()) as fleet:
        fleet.install([light_version("a")])
        with pytest.raises(WorkerError) as caught:
            fleet.install([LostVersion(light_version("b").header)])  # type: ignore[list-item]
        assert caught.value.fault == "lost" and caught.value.is_infrastructure
        assert fleet.num_restarts == 0 and len(fleet.living) == 1
    assert read_events(tmp_path / "run") == []


def test_a_worker_that_works_is_not_called_late(ray_session: dict[str, float], tmp_path: Path) -> None:
    """Nobody asks for longer than the bound; then one draws two pieces in a row, together longer than the bound."""
    faults = Faults(tmp_path / "run")
    with fleet_of(tmp_path / "run", 2, RecoveryConfig(generate_timeout_seconds=4), draw_seconds=2.5) as fleet:
        fleet.install([light_version("a")])
        faults.arm("generate-0")
        tasks: list[Any] = [0, 1, 2, 3]
        batch = fleet.submit(tasks, SamplingConfig(), 0)
        time.sleep(4.5)  # ranks learn meanwhile
        answers: list[Any] = fleet.collect(batch)
        assert [task for task, _, _ in answers] == tasks
        assert batch.redispatched == 1
    assert len(read_events(tmp_path / "run")) == 1, "one death, and nobody else accused"
    require_victims(tmp_path / "run")


def test_a_slow_worker_s_piece_is_drawn_by_one_with_nothing_to_do(
    ray_session: dict[str, float], tmp_path: Path
) -> None:
    """It gets on, so it is not silent: a step would wait a minute for it. It keeps its place, and is free at once."""
    tasks: list[Any] = list(range(4))
    recovery = RecoveryConfig(rollout_deadline_seconds=4)
    with fleet_of(tmp_path / "run", 2, recovery, draw_seconds=60, slow_ranks=(1,)) as fleet:
        began, pids = time.monotonic(), []
        for version, sha in enumerate("ab"):
            fleet.install([light_version(sha)])
            batch = fleet.submit(tasks, SamplingConfig(), version)
            answers: list[Any] = fleet.collect(batch)
            assert [task for task, _, _ in answers] == tasks, "all, once, in order"
            assert {held for _, held, _ in answers} == {sha} and batch.redispatched == 1
            pids += [pid for _, _, pid in answers]
        assert time.monotonic() - began < 25, "two steps of a deadline each"
        assert fleet.num_restarts == 0 and len(set(pids)) == 1, "the quick one has drawn everything"
    events = read_events(tmp_path / "run")
    assert [(e["event"], e["late"], e["to"]) for e in events] == [("redispatched", 1, 0)] * 2


def test_a_worker_slow_for_twice_the_deadline_is_replaced(ray_session: dict[str, float], tmp_path: Path) -> None:
    """Both are slow, so nobody has time for the other's piece."""
    tasks: list[Any] = list(range(4))
    recovery = RecoveryConfig(rollout_deadline_seconds=1)
    with fleet_of(tmp_path / "run", 2, recovery, draw_seconds=60, slow_ranks=(0, 1)) as fleet:
        began = time.monotonic()
        fleet.install([light_version("a")])
        batch = fleet.submit(tasks, SamplingConfig(), 0)
        answers: list[Any] = fleet.collect(batch)
        assert [task for task, _, _ in answers] == tasks
        assert time.monotonic() - began < 45 and batch.redispatched >= 2
        assert fleet.num_restarts == 2
    events = read_events(tmp_path / "run")
    assert [e["event"] for e in events].count("fault_detected") == 2
    lost = [e for e in events if e["event"] == "fault_detected"]
    assert all("recovery.rollout_deadline_seconds" in e["cause"] and e["detect_seconds"] < 8 for e in lost)
    assert sorted(e["fault"] for e in lost) == sorted(e["fault"] for e in events if e["event"] == "fault_resolved")


def test_what_no_node_can_hold_is_refused_by_name(
    ray_session: dict[str, float], tiny_base: Path, tmp_path: Path
) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"CPU.*\n(.*\n)*.*asked.*free.*total"):
        ppo.run_ppo(chaos_config(tiny_base, tmp_path / "run", **{"placement.cpus_per_worker": 99}))
    assert time.monotonic() - began < 30
