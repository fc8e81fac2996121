"""Scorer workers whose replacements die too, and the places that they take beside a critic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.config import PlacementConfig, RecoveryConfig
from rlhf.errors import ScorersExhausted
from rlhf.stages import ppo
from rlhf.telemetry.events import EventLog, read_events
from rlhf.workers.group import WorkerGroup
from rlhf.workers.policy_start import SeparateModel
from rlhf.workers.scorers import Scorers
from tests.support.chaos_faults import Faults, LightAnswer
from tests.support.chaos_runs import require_victims, scored_config
from tests.support.runs import foreign_base, write_reward_run
from tests.support.tiny import build_model


def test_when_every_replacement_dies_the_reason_is_told(ray_session: dict[str, float], tmp_path: Path) -> None:
    """In real processes without a model."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    faults, groups = Faults(run_dir), []

    def launch(size: int, first_rank: int) -> WorkerGroup:
        where: dict[str, Any] = {"placement": PlacementConfig(), "run_dir": str(run_dir), "first_rank": first_rank}
        groups.append(WorkerGroup.launch("tests.support.chaos_faults:LightScorer", "scorer", size=size, **where))
        return groups[-1]

    recovery, model = RecoveryConfig(max_scorer_restarts=1), SeparateModel(0, "none", False)
    try:
        scorers = Scorers(launch(1, 0), lambda rank: launch(1, rank), [model], recovery, EventLog(run_dir))
        answers: list[Any] = [LightAnswer((1, 2)), LightAnswer((1,))]
        assert scorers.collect(scorers.submit(answers)).tolist() == [[2.0], [1.0]]
        faults.arm("score")
        faults.arm("build")
        with pytest.raises(ScorersExhausted, match=r"scorer worker 0 failed: .* after 1 restarts") as caught:
            scorers.collect(scorers.submit(answers))
    finally:
        for group in groups:
            group.close()
    assert caught.value.exit_code == 3 and caught.value.fault == "died"
    require_victims(run_dir)
    assert [e["event"] for e in read_events(run_dir)] == ["fault_detected", "fault_fatal"]


def test_places_are_taken_for_scorers_and_a_critic_too(
    ray_session: dict[str, float], tiny_base: Path, tmp_path: Path
) -> None:
    """On processes and in places of their own: one of each beside rank and rollout worker, one where no rank is."""
    foreign = write_reward_run(tmp_path / "foreign", foreign_base(tmp_path), 1)
    changes: dict[str, Any] = {
        "num_steps": 1,
        "placement.num_ranks": 1,
        "placement.num_rollout_workers": 1,
        "placement.layout": "colocated",
        "engine.zero_stage": 0,
        "roles.critic": str(build_model(tmp_path / "wide", seed=5, hidden_size=96)),
        "placement.num_critic_ranks": 2,
    }
    summary = ppo.run_ppo(scored_config(tiny_base, tmp_path / "run", foreign, 2, **changes))
    assert summary["num_steps"] == 1 and summary["num_critic_ranks"] == 2
    assert summary["restarts"] == {"ranks": 0, "rollout_workers": 0, "scorer_workers": 0}
    logs = {path.name for path in (tmp_path / "run" / "logs").iterdir()}
    assert {"scorer-0.log", "scorer-1.log", "critic-0.log", "critic-1.log"} <= logs
