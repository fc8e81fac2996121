"""Nodes that are gone: survivors do not wait for their return, and no restart is charged for what could not start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf.config import RecoveryConfig
from rlhf.errors import ConfigError, PlaceLostError, RlhfError, RolloutFleetExhausted, WorkerError
from rlhf.telemetry.events import EventLog, read_events
from rlhf.workers import fleet as fleet_module
from rlhf.workers import scorers as scorers_module
from rlhf.workers.fleet import RolloutFleet
from rlhf.workers.group import WorkerGroup
from rlhf.workers.placement import Reservation, require_places
from rlhf.workers.scorers import Asked, Scorers
from tests.support.chaos_faults import light_version

GONE = PlaceLostError("rollout", 1, "its node is gone, and no other has room for it yet", "died")
SICK = WorkerError("rollout", 1, "it died at its start", "died")


class Workers:
    """Starts of replacements, as told beforehand, and answers of whoever lives."""

    def __init__(self, run_dir: Path, size: int, monkeypatch: pytest.MonkeyPatch, *starts: RlhfError | None) -> None:
        self.starts, self.asked = list(starts), 0
        names = [f"worker {rank}" for rank in range(size)]
        group: Any = WorkerGroup(
            "rollout", 1.0, actors=names, pids=[1] * size, nodes=["n"] * size, run_dir=str(run_dir)
        )  # type: ignore[arg-type]
        self.events = EventLog(run_dir)
        self.fleet = RolloutFleet(group, self.launch, RecoveryConfig(max_rollout_restarts=4), self.events)
        monkeypatch.setattr(fleet_module, "end_process", lambda *_: None)
        monkeypatch.setattr(self.fleet, "_ask", self.answer)

    def launch(self, rank: int) -> WorkerGroup:
        self.asked += 1
        if (failure := self.starts.pop(0)) is not None:
            raise failure
        return WorkerGroup("rollout", 1.0, actors=[f"replacement {rank}"], pids=[2], nodes=["m"])  # type: ignore[list-item]

    def answer(self, method: str, args: Mapping[int, tuple]) -> dict[int, Any]:
        return {rank: (parts[0].header.sha256, 0.0) for rank, parts in args.items()}

    def lose(self, *ranks: int) -> None:
        for rank in ranks:
            self.fleet._lose(rank, SICK)

    def install(self, name: str) -> None:
        version = light_version(name)
        self.fleet.install([version])


@pytest.fixture(autouse=True)
def short_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "sha_of", lambda headers: headers[0].sha256)


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places that are lost stay so in these tests, but where they say otherwise."""
    for module in (fleet_module, scorers_module):
        monkeypatch.setattr(module, "PLACE_SECONDS", 0.0)


def test_a_place_that_is_lost_costs_one_question_per_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(tmp_path, 2, monkeypatch, GONE, GONE, None)
    workers.install("a")
    workers.lose(1)
    for name, asked in (("b", 1), ("c", 2)):
        workers.install(name)
        workers.fleet.call("canary", light_version(name))
        assert workers.asked == asked and set(workers.fleet.living) == {0} and workers.fleet.num_restarts == 0
    workers.install("d")
    assert workers.fleet.living == {0: "worker 0", 1: "replacement 1"} and workers.fleet.num_restarts == 1
    assert [e["event"] for e in read_events(tmp_path)] == ["fault_detected", "fault_resolved"]


def test_survivors_wait_for_one_failed_start_per_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may take as long as a start may: all of them in a row would be half an hour."""
    workers = Workers(tmp_path, 2, monkeypatch, SICK, SICK, None)
    workers.install("a")
    workers.lose(1)
    workers.install("b")
    workers.fleet.heal()
    assert (workers.asked, workers.fleet.num_restarts) == (1, 1)
    workers.install("c")
    assert (workers.asked, workers.fleet.num_restarts) == (2, 2)
    workers.install("d")
    assert set(workers.fleet.living) == {0, 1} and workers.fleet.num_restarts == 3


def test_without_survivors_and_places_all_places_are_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = Workers(tmp_path, 2, monkeypatch, GONE, GONE)
    workers.install("a")
    workers.lose(0, 1)
    with pytest.raises(PlaceLostError) as caught:
        workers.install("b")
    assert caught.value.is_infrastructure and not isinstance(caught.value, RolloutFleetExhausted)
    assert workers.asked == 2 and workers.fleet.num_restarts == 0, "the other one's place was asked for, too"


def test_a_place_that_turns_up_elsewhere_is_waited_for_where_nobody_else_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray tells of a death before it has moved the place; with a survivor the step goes on without it."""
    monkeypatch.setattr(fleet_module, "PLACE_SECONDS", 5.0)
    workers = Workers(tmp_path, 2, monkeypatch, GONE, GONE, None, GONE, None)
    workers.install("a")
    workers.lose(0, 1)
    workers.install("b")
    assert set(workers.fleet.living) == {0} and workers.fleet.num_restarts == 1 and workers.asked == 4
    workers.install("c")
    assert set(workers.fleet.living) == {0, 1} and workers.fleet.num_restarts == 2


def test_whatever_keeps_a_replacement_from_starting_costs_a_restart_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first worker has started with the same settings, so that it is the host that fails."""
    workers = Workers(tmp_path, 2, monkeypatch, ConfigError("a GPU of 10.0.0.2 was given to this worker"), None)
    workers.install("a")
    workers.lose(1)
    workers.install("b")
    assert set(workers.fleet.living) == {0} and workers.fleet.num_restarts == 1
    workers.install("c")
    assert set(workers.fleet.living) == {0, 1} and workers.fleet.num_restarts == 2


def test_without_survivors_every_restart_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(tmp_path, 1, monkeypatch, SICK, SICK, SICK, SICK)
    workers.install("a")
    workers.lose(0)
    with pytest.raises(RolloutFleetExhausted, match="after 4 restarts"):
        workers.install("b")


def test_a_scorer_worker_without_a_place_is_no_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers_module, "end_process", lambda *_: None)

    def fail(self: WorkerGroup, refs: Any, **_: Any) -> Any:
        raise WorkerError("scorer", 0, "NodeDiedError: gone", "died")

    def launch(rank: int) -> WorkerGroup:
        raise PlaceLostError("scorer", rank, "its node is gone", "died")

    monkeypatch.setattr(WorkerGroup, "wait", fail)
    group: Any = WorkerGroup("scorer", 1.0, actors=["worker 0"], pids=[1], nodes=["n"])  # type: ignore[list-item]
    scorers = Scorers(group, launch, [], RecoveryConfig(max_scorer_restarts=2), EventLog(tmp_path))
    with pytest.raises(PlaceLostError):
        scorers.collect(Asked([], [[]], []))
    assert scorers.num_restarts == 0


def test_only_places_on_nodes_that_live_are_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's table keeps a bundle whose node is gone, under no node or under the old one."""
    placement = "rlhf.workers.placement"
    table = {"bundles_to_node_id": {0: "a", 1: "dead", 2: ""}}
    monkeypatch.setattr(f"{placement}.placement_group_table", lambda group: table)
    monkeypatch.setattr(f"{placement}.cluster_nodes", lambda: [SimpleNamespace(node_id="a")])
    places = Reservation([None], {"rollout": [(0, 1), (0, 0), (0, 2)], "anywhere": [(-1, 0)]})  # type: ignore[list-item]
    assert places.lost("rollout", range(3)) == [0, 2]
    assert places.lost("rollout", [1]) == places.lost("anywhere", [0]) == []
    with pytest.raises(PlaceLostError, match="rollout worker 2 failed: its node is gone"):
        require_places(places, "rollout", range(1, 3))
    require_places(places, "rollout", [1])
    require_places(None, "rollout", [2])
