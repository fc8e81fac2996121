"""Faults of a run and what became of them: each is on record once, and its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.errors import PlaceLostError, RolloutFleetExhausted, WorkerError
from rlhf.stages.restarts import RankRestarts
from rlhf.telemetry.events import EventLog, read_events


def restarts_of(run_dir: Path, limit: int = 2) -> RankRestarts:
    return RankRestarts("ppo", {"policy": 2}, limit, EventLog(run_dir), run_dir)


def told(run_dir: Path) -> list[tuple[str, str]]:
    return [(event["event"], event["fault"]) for event in read_events(run_dir)]


def test_whoever_was_rebuilt_with_the_ranks_is_back_with_them(tmp_path: Path) -> None:
    restarts = restarts_of(tmp_path)
    restarts.events.fault_detected("scorer-1")
    restarts.again_or_raise(PlaceLostError("scorer", 1, "its node is gone", "died"))
    restarts.resolved(3)
    assert told(tmp_path) == [("fault_detected", "scorer-1"), ("fault_resolved", "scorer-1")]
    assert restarts.count == 1


def test_a_rank_whose_place_is_waited_for_in_vain_has_one_fault(tmp_path: Path) -> None:
    restarts = restarts_of(tmp_path)
    restarts.again_or_raise(WorkerError("policy", 0, "NodeDiedError: gone", "died"))
    restarts.again_or_raise(WorkerError("policy", 0, "no place within 180 s", "died"))
    restarts.resolved(3)
    assert told(tmp_path) == [("fault_detected", "policy-0"), ("fault_resolved", "policy-0")]
    with pytest.raises(WorkerError):
        restarts.again_or_raise(WorkerError("policy", 1, "NodeDiedError: gone", "died"))
    assert told(tmp_path)[2:] == [("fault_detected", "policy-1"), ("fault_fatal", "policy-1")]


@pytest.mark.parametrize(
    "error", [RolloutFleetExhausted("rollout", 0, "none left", "died"), WorkerError("policy", 0, "ValueError: no")]
)
def test_what_another_process_would_not_cure_ends_the_run(error: WorkerError, tmp_path: Path) -> None:
    with pytest.raises(WorkerError):
        restarts_of(tmp_path).again_or_raise(error)
