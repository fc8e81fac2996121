"""PPO learns what is rewarded, stays where nothing is, and every option does what it says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from rlhf.models.source import resolve_model
from tests.support.ppo import Finished, run, tiny_config
from tests.support.runtime import ActorPool

GOLDEN = Path(__file__).parents[1] / "golden" / "ppo_tiny.json"
TRACKED = ("score_mean", "kl", "entropy", "policy_loss", "value_loss", "grad_norm", "approx_kl", "response_tokens_mean")
TOLERANCE = 2e-3
"""Of each figure, relative to its largest magnitude over the run: thread counts and BLAS builds stay far below."""

LEARNING: dict[str, Any] = {
    "num_steps": 27,
    "optim.learning_rate": 5e-3,
    "batch.responses_per_prompt": 8,
    "batch.minibatch_sequences": 16,
    "batch.microbatch_sequences_per_gpu": 8,
    "engine.zero_stage": 2,
    "kl.coef": 0.1,
}


@pytest.fixture(scope="module")
def planted(actor_pool: ActorPool, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Twenty-seven steps that reward the letter e."""
    return run(tiny_config(tiny_base, tmp_path_factory.mktemp("planted") / "run", **LEARNING), actor_pool)


def test_a_planted_reward_is_learned(planted: Finished) -> None:
    scores = planted.series("score_mean")
    first, last = sum(scores[:3]) / 3, sum(scores[-3:]) / 3
    assert last > first + 1.0, scores
    assert 0 < planted.series("kl")[-1] < 30
    explained = planted.series("explained_variance")
    assert sum(explained[-5:]) > sum(explained[1:6]) + 0.3, "the critic has learned nothing"


def test_golden_trajectory(actor_pool: ActorPool, tiny_base: Path, tmp_path: Path) -> None:
    """Same seed, same twenty steps. After a change that is meant: RLHF_WRITE_GOLDEN=1 rewrites the file.

    The steps are small ones: large ones magnify the last bits of another matrix library until another token is drawn.
    """
    changes = {**LEARNING, "num_steps": 20, "optim.learning_rate": 1e-3, "batch.responses_per_prompt": 4}
    run_of = run(tiny_config(tiny_base, tmp_path / "run", **changes), actor_pool)
    found = {key: run_of.series(key) for key in TRACKED}
    if os.environ.get("RLHF_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for key, values in expected.items():
        size = max(map(abs, values))
        off = [abs(a - b) / size for a, b in zip(found[key], values, strict=True)]
        assert max(off) < TOLERANCE, (
            f"{key} leaves the golden trajectory at step {off.index(max(off))} by {max(off):.2g}"
        )


def test_a_finished_run_is_a_model_for_the_next_stage(planted: Finished, tiny_base: Path) -> None:
    source = resolve_model(str(planted.run_dir))
    assert source.record is not None and source.record.stage == "ppo" and source.base == str(tiny_base)
    rows = [json.loads(line) for line in (planted.run_dir / "rollouts.jsonl").read_text("utf-8").splitlines()]
    assert {row["step"] for row in rows} == {0, 10, 20, 26}
    assert all(row["score"] == row["response"].count("e") and row["version"] == row["step"] for row in rows)


def test_the_sft_adapter_starts_the_next_run(
    planted: Finished, actor_pool: ActorPool, tiny_base: Path, tmp_path: Path
) -> None:
    """A run that starts from another's adapter begins at KL 0 and at that run's scores."""
    changes = {**LEARNING, "num_steps": 1, "model.name": str(planted.run_dir)}
    second = run(tiny_config(tiny_base, tmp_path / "run", **changes), actor_pool)
    assert second.rows[0]["kl"] == 0.0 and second.rows[0]["kl_max"] == 0.0
    assert second.rows[0]["score_mean"] > planted.series("score_mean")[0] + 1.0
    assert second.rows[0]["entropy"] < planted.series("entropy")[0]


def test_nothing_rewarded_nothing_learned(actor_pool: ActorPool, tiny_base: Path, tmp_path: Path) -> None:
    scores = [{"kind": "function", "path": "tests.support.scores:nothing"}]
    still = run(tiny_config(tiny_base, tmp_path / "run", **{**LEARNING, "num_steps": 4, "scores": scores}), actor_pool)
    assert all(abs(value) < 1e-6 for value in still.series("kl"))
    assert all(value == 0.0 for value in still.series("score_mean"))


METHODS: list[dict[str, Any]] = [
    {"advantage.method": "grpo", "kl.mode": "loss", "kl.estimator": "k2"},
    {"advantage.method": "rloo", "kl.mode": "none"},
    {"advantage.method": "reinforce_plus_plus", "kl.mode": "reward"},
]


@pytest.mark.parametrize("changes", METHODS, ids=lambda c: c["advantage.method"])
def test_methods_without_a_critic(
    changes: dict[str, Any], actor_pool: ActorPool, tiny_base: Path, tmp_path: Path
) -> None:
    found = run(tiny_config(tiny_base, tmp_path / "run", **changes), actor_pool)
    assert found.summary["trainable"]["critic"] == 0 and found.summary["trainable"]["policy"] > 0
    assert not (found.run_dir / "critic").exists()
    assert "value_loss" not in found.rows[0] and found.rows[0]["explained_variance"] is None
    assert found.rows[0]["grad_norm"] > 0 and found.rows[0]["ratio_first"] < 1e-4
    assert ("kl_loss" in found.rows[0]) == (changes["kl.mode"] == "loss")
    if changes["kl.mode"] == "loss":
        assert found.rows[1]["kl_loss"] > found.rows[0]["kl_loss"] > 0


def test_adaptive_kl_follows_its_formula(actor_pool: ActorPool, tiny_base: Path, tmp_path: Path) -> None:
    changes = {"kl.target": 1e-3, "kl.horizon": 100.0, "num_steps": 3, "optim.learning_rate": 1e-2}
    found = run(tiny_config(tiny_base, tmp_path / "run", **changes), actor_pool)
    coef = 0.05
    for row in found.rows:  # each tells the coefficient that it was learned with
        assert row["kl_coef"] == pytest.approx(coef, rel=1e-9)
        error = min(max(row["kl"] / 1e-3 - 1, -0.2), 0.2)
        coef *= 1 + error * 16 / 100
    assert found.rows[0]["kl_coef"] == 0.05 > found.rows[1]["kl_coef"]  # KL was 0 at step 0


def test_an_epoch_stops_on_kl_on_every_rank_alike(actor_pool: ActorPool, tiny_base: Path, tmp_path: Path) -> None:
    changes = {"batch.epochs": 3, "loss.epoch_kl_stop": 1e-7, "placement.num_ranks": 2, "engine.zero_stage": 2}
    found = run(tiny_config(tiny_base, tmp_path / "run", **changes), actor_pool)
    learned = [results for method, results in found.answers if method == "learn"]
    assert len(learned) == 2
    for results in learned:
        assert len(results) == 2 and results[0] == results[1]
        assert results[0]["epochs_run"] == 1 and results[0]["updates"] == 2
    all_epochs = run(
        tiny_config(tiny_base, tmp_path / "all", **{**changes, "loss.epoch_kl_stop": 1e3, "num_steps": 1}), actor_pool
    )
    assert all_epochs.rows[0]["epochs_run"] == 3 and all_epochs.rows[0]["updates"] == 6


@pytest.mark.parametrize(
    "changes",
    [
        {"rollout.temperature": 0.7},
        {"loss.dual_clip": 3.0, "loss.value_clip": 0.2, "loss.entropy_coef": 0.01, "critic_learning_rate": 1e-2},
        {"model.quantization": "nf4", "engine.zero_stage": 2},
        {"lora.use_dora": True},
        {
            "score.missing_eos": "replace",
            "score.missing_eos_value": -1.0,
            "score.clip": 2.0,
            "score.whiten_rewards": True,
        },
    ],
    ids=lambda c: next(iter(c)),
)
def test_options_keep_the_invariants(
    changes: dict[str, Any], actor_pool: ActorPool, tiny_base: Path, tmp_path: Path
) -> None:
    found = run(tiny_config(tiny_base, tmp_path / "run", **changes), actor_pool)
    assert found.rows[0]["kl_max"] == 0.0
    assert all(value < 1e-4 for value in found.series("ratio_first"))
    assert all(value <= 1e-4 for value in found.series("sync.max_logprob_diff"))
    assert all(value < 1e-4 for value in found.series("mismatch_max"))
    assert found.rows[1]["kl"] != 0.0, "nothing was learned"


def test_critic_warmup_leaves_the_policy_alone(actor_pool: ActorPool, tiny_base: Path, tmp_path: Path) -> None:
    """In the first step only the critic learns: the policy's KL stays exactly 0, then both move."""
    changes = {"num_steps": 3, "loss.critic_warmup_steps": 1, "optim.learning_rate": 1e-2}
    found = run(tiny_config(tiny_base, tmp_path / "run", **changes), actor_pool)
    assert found.series("kl")[:2] == [0.0, 0.0] and found.series("kl")[2] != 0.0
    assert found.series("policy_trained") == [0.0, 1.0, 1.0]
    assert found.rows[0]["value_loss"] > 0 and found.rows[0]["grad_norm"] > 0
