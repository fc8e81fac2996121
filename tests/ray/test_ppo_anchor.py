"""The anchor to demonstrations: they are learned beside the reward, alike on any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.ray.test_ppo_invariance import differences
from tests.support.ppo import Finished, run, tiny_config
from tests.support.runtime import ActorPool

NOTHING = [{"kind": "function", "path": "tests.support.scores:nothing"}]


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Six conversations of different lengths, four of them in every update."""
    path = tmp_path_factory.mktemp("talks") / "talks.jsonl"
    rows = [{"prompt": "abc"[: 1 + i % 3], "completion": "the moon " * (1 + i % 4)} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"ptx": {"train": str(path), "coef": 0.5, "sequences_per_update": 4}}


def test_demonstrations_are_learned_where_nothing_is_rewarded(
    talks: dict[str, Any], actor_pool: ActorPool, tiny_base: Path, tmp_path: Path
) -> None:
    changes = {**talks, "scores": NOTHING, "num_steps": 4, "optim.learning_rate": 1e-2}
    found = run(tiny_config(tiny_base, tmp_path / "run", **changes), actor_pool)
    losses = found.series("ptx_loss")
    assert losses[0] > 4 and losses[-1] < 0.7 * losses[0], losses
    assert found.series("kl")[-1] > 0.1
    assert all(value == 0.0 for value in found.series("score_mean"))


SPREAD: list[dict[str, Any]] = [
    {"batch.microbatch_sequences_per_gpu": 1},
    {"placement.num_ranks": 2},
    {"placement.num_ranks": 2, "engine.zero_stage": 2, "batch.microbatch_sequences_per_gpu": 1},
    {"placement.num_ranks": 2, "engine.zero_stage": 3},
]


@pytest.fixture(scope="module")
def alone(
    actor_pool: ActorPool, tiny_base: Path, talks: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    return run(tiny_config(tiny_base, tmp_path_factory.mktemp("alone") / "run", **talks), actor_pool)


@pytest.mark.parametrize("changes", SPREAD, ids=lambda c: ",".join(f"{k.split('.')[-1]}={v}" for k, v in c.items()))
def test_ranks_and_passes_do_not_change_what_is_learned(
    changes: dict[str, Any], alone: Finished, talks: dict[str, Any], actor_pool: ActorPool, tiny_base: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    other = run(tiny_config(tiny_base, tmp_path / "run", **talks, **changes), actor_pool)
    found = differences(alone, other)
    assert found["adapter"] < 2e-5 and found["grad_norm"] < 2e-5, found
    for a, b in zip(alone.series("ptx_loss"), other.series("ptx_loss"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_a_critic_that_warms_up_leaves_the_policy_alone(
    talks: dict[str, Any], actor_pool: ActorPool, tiny_base: Path, tmp_path: Path
) -> None:
    changes = {**talks, "loss.critic_warmup_steps": 1}
    found = run(tiny_config(tiny_base, tmp_path / "run", **changes), actor_pool)
    assert found.rows[0]["policy_trained"] == 0.0 and found.rows[1]["kl"] == 0.0
    assert found.rows[1]["ptx_loss"] < found.rows[0]["ptx_loss"]
