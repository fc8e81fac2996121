"""Scorer workers of a PPO run: any number of them, cut-off runs and killed workers all give the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.config import EvaluateConfig, PlacementConfig, PpoConfig, RecoveryConfig, build_config
from rlhf.data.schema import Message, PromptRow
from rlhf.errors import ScorersExhausted
from rlhf.models.scorer import load_reward_model
from rlhf.stages import evaluate, ppo
from rlhf.telemetry.events import EventLog, read_events
from rlhf.workers.group import WorkerGroup
from rlhf.workers.policy_start import SeparateModel
from rlhf.workers.scorers import Scorers
from tests.support.chaos_faults import Faults, LightAnswer
from tests.support.chaos_runs import Outcome, chaos_config, differences, require_victims, run, watched
from tests.support.runs import foreign_base, write_reward_run
from tests.support.runtime import ActorPool
from tests.support.tiny import build_model


class Cut(BaseException):
    """Stands for a kill: nothing of the run's own code sees it."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for the runs that are compared: they must read the same prompt file."""
    return tmp_path_factory.mktemp("scorers")


@pytest.fixture(scope="module")
def foreign(place: Path) -> Path:
    """A reward run on another base that reads other tokens."""
    return write_reward_run(place / "foreign", foreign_base(place), 1)


def config_of(base: Path, run_dir: Path, foreign: Path, num_scorers: int, **changes: Any) -> PpoConfig:
    """32 responses a step, in two pieces."""
    settings: dict[str, Any] = {
        "scores": [{"kind": "reward_model", "run": str(foreign)}],
        "batch.prompts_per_step": 8,
        "batch.epochs": 1,
        "num_steps": 3,
        "placement.num_scorer_workers": num_scorers,
        **changes,
    }
    return chaos_config(base, run_dir, **settings)


@pytest.fixture(scope="module")
def reference(actor_pool: ActorPool, tiny_base: Path, place: Path, foreign: Path) -> Outcome:
    """One scorer worker, and nothing happens to it."""
    return run(config_of(tiny_base, place / "whole", foreign, 1), actor_pool)


def test_a_run_cut_off_with_one_worker_goes_on_exactly_with_two(
    reference: Outcome, actor_pool: ActorPool, tiny_base: Path, place: Path, foreign: Path
) -> None:
    def stop(done: int, total: int, **_: Any) -> None:
        if done == 2:
            raise Cut

    with watched(actor_pool, ()), pytest.raises(Cut):
        ppo.run_ppo(config_of(tiny_base, place / "cut", foreign, 1), progress=stop)
    found = run(config_of(tiny_base, place / "cut", foreign, 2), actor_pool)
    assert [e["step"] for e in found.events if e["event"] == "resumed"] == [2]
    assert differences(reference, found) == []


def test_killed_scorers_are_replaced_within_the_step(
    reference: Outcome, actor_pool: ActorPool, tiny_base: Path, place: Path, foreign: Path
) -> None:
    """One of two dies in each step: none is repeated, and the run is the same."""
    faults = Faults(place / "killed")
    for state in ("score-0-1", "score-2-0", "score-1-1"):
        faults.arm(state)
    found = run(config_of(tiny_base, place / "killed", foreign, 2), actor_pool, "scorer")
    assert differences(reference, found) == []
    restarts = {"ranks": 0, "rollout_workers": 0, "scorer_workers": 3}
    assert found.summary["restarts"] == restarts
    assert sorted(found.kinds("fault_detected")) == sorted(found.kinds("fault_resolved"))
    assert found.kinds("fault_detected").count("scorer-1") == 2 and "scorer-0" in found.kinds("fault_detected")


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
    ray_session: dict[str, float], tiny_base: Path, foreign: Path, tmp_path: Path
) -> None:
    """On processes and in places of their own: one of each beside rank and rollout worker, one where no rank is."""
    changes: dict[str, Any] = {
        "num_steps": 1,
        "placement.num_ranks": 1,
        "placement.num_rollout_workers": 1,
        "placement.layout": "colocated",
        "engine.zero_stage": 0,
        "roles.critic": str(build_model(tmp_path / "wide", seed=5, hidden_size=96)),
        "placement.num_critic_ranks": 2,
    }
    summary = ppo.run_ppo(config_of(tiny_base, tmp_path / "run", foreign, 2, **changes))
    assert summary["num_steps"] == 1 and summary["num_critic_ranks"] == 2
    assert summary["restarts"] == {"ranks": 0, "rollout_workers": 0, "scorer_workers": 0}
    logs = {path.name for path in (tmp_path / "run" / "logs").iterdir()}
    assert {"scorer-0.log", "scorer-1.log", "critic-0.log", "critic-1.log"} <= logs


def test_an_evaluation_asks_the_same_worker(foreign: Path, actor_pool: ActorPool, tmp_path: Path) -> None:
    row = PromptRow("0", (Message("user", "Ask"),))
    tree = {"model": {"name": "x"}, "baseline": "x", "prompts": "p.jsonl", "run_dir": str(tmp_path)}
    source = {"kind": "reward_model", "run": str(foreign)}
    with actor_pool.lent_to(evaluate):
        judge = evaluate.make_judge(
            build_config(EvaluateConfig, {**tree, "judge": source}, source="test"), str(tmp_path)
        )
        answers = ["bread", "", "They ran and ran"]
        found = judge([row] * 3, answers)
    assert found == load_reward_model(foreign).score_texts([(row.messages, answer) for answer in answers])
