"""Scorer workers of a PPO run: any number of them, cut-off runs and killed workers all give the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.config import EvaluateConfig, build_config
from rlhf.data.schema import Message, PromptRow
from rlhf.models.scorer import load_reward_model
from rlhf.stages import evaluate, ppo
from tests.support.chaos_faults import Faults
from tests.support.chaos_runs import Outcome, differences, run, scored_config, watched
from tests.support.runs import foreign_base, write_reward_run
from tests.support.runtime import ActorPool


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


@pytest.fixture(scope="module")
def reference(actor_pool: ActorPool, tiny_base: Path, place: Path, foreign: Path) -> Outcome:
    """One scorer worker, and nothing happens to it."""
    return run(scored_config(tiny_base, place / "whole", foreign, 1), actor_pool)


def test_a_run_cut_off_with_one_worker_goes_on_exactly_with_two(
    reference: Outcome, actor_pool: ActorPool, tiny_base: Path, place: Path, foreign: Path
) -> None:
    def stop(done: int, total: int, **_: Any) -> None:
        if done == 2:
            raise Cut

    with watched(actor_pool, ()), pytest.raises(Cut):
        ppo.run_ppo(scored_config(tiny_base, place / "cut", foreign, 1), progress=stop)
    found = run(scored_config(tiny_base, place / "cut", foreign, 2), actor_pool)
    assert [e["step"] for e in found.events if e["event"] == "resumed"] == [2]
    assert differences(reference, found) == []


def test_killed_scorers_are_replaced_within_the_step(
    reference: Outcome, actor_pool: ActorPool, tiny_base: Path, place: Path, foreign: Path
) -> None:
    """One of two dies in each step: none is repeated, and the run is the same."""
    faults = Faults(place / "killed")
    for state in ("score-0-1", "score-2-0", "score-1-1"):
        faults.arm(state)
    found = run(scored_config(tiny_base, place / "killed", foreign, 2), actor_pool, "scorer")
    assert differences(reference, found) == []
    restarts = {"ranks": 0, "rollout_workers": 0, "scorer_workers": 3}
    assert found.summary["restarts"] == restarts
    assert sorted(found.kinds("fault_detected")) == sorted(found.kinds("fault_resolved"))
    assert found.kinds("fault_detected").count("scorer-1") == 2 and "scorer-0" in found.kinds("fault_detected")


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
