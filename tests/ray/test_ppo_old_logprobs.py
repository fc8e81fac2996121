"""Old log-probs of the rollout engine: the policy is judged on the first step alone, and learns the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import WeightSyncError
from tests.support.ppo import Finished, run, tiny_config
from tests.support.runtime import ActorPool

OF_ROLLOUT = {"loss.old_logprobs": "rollout"}
ONE_UPDATE = {"batch.minibatch_sequences": 16, "num_steps": 3}
"""Per epoch: a step's first update then holds all of its sequences."""
LOOSE = {"sync_tolerance": 0.5, "ratio_tolerance": 0.5}
MISMATCH = ("mismatch_mean", "mismatch_max", "mismatch_kl")


@pytest.fixture(scope="module")
def of_trainer(actor_pool: ActorPool, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The policy is judged at every step."""
    return run(tiny_config(tiny_base, tmp_path_factory.mktemp("trainer") / "run", **ONE_UPDATE), actor_pool)


def says_of_policy(finished: Finished) -> list[bool]:
    """By step: whether the ranks were asked for old log-probs."""
    return ["old_logprobs" in results[0] for method, results in finished.answers if method == "judge"]


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_policy_learns_the_same(
    num_ranks: int, of_trainer: Finished, actor_pool: ActorPool, tiny_base: Path, tmp_path: Path
) -> None:
    changes = {**ONE_UPDATE, **OF_ROLLOUT, "placement.num_ranks": num_ranks}
    found = run(tiny_config(tiny_base, tmp_path / "run", **changes), actor_pool)
    assert says_of_policy(of_trainer) == [True, True, True]
    assert says_of_policy(found) == [True, False, False]
    moved = max(float(v.abs().max()) for k, v in found.adapter.items() if "lora_B" in k)
    apart = max(float((found.adapter[k] - v).abs().max()) for k, v in of_trainer.adapter.items())
    assert moved > 1e-3 and apart < 5e-5
    assert found.series("score_mean") == of_trainer.series("score_mean"), "the same text was drawn"
    for key in ("entropy", "kl", "policy_loss", "value_loss", "approx_kl"):
        assert found.series(key) == pytest.approx(of_trainer.series(key), abs=5e-5), key


def test_the_first_update_measures_what_judging_did(
    of_trainer: Finished, actor_pool: ActorPool, tiny_base: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_base, tmp_path / "run", **ONE_UPDATE, **OF_ROLLOUT)
    shifted = run(config, actor_pool, RolloutWorker="tests.support.faults:SlightlyShiftedRollout")
    for row in shifted.rows[1:]:
        assert row["mismatch_mean"] == pytest.approx(0.1, abs=1e-4)
        assert row["mismatch_max"] == pytest.approx(0.1, abs=1e-3)
        assert row["mismatch_kl"] == pytest.approx(0.1 + 2.718281828**-0.1 - 1, abs=1e-4)
        assert row["ratio_first"] == pytest.approx(1 - 2.718281828**-0.1, abs=1e-3)
    assert all(value < 1e-4 for key in MISMATCH for value in of_trainer.series(key))


@pytest.mark.parametrize(
    "changes",
    [{"lora.use_dora": True}, {"advantage.method": "reinforce_plus_plus"}, {"model.dtype": "bfloat16", **LOOSE}],
    ids=["passes of their own", "no critic", "bfloat16"],
)
def test_other_ways_of_judging_and_learning(
    changes: dict[str, Any], actor_pool: ActorPool, tiny_base: Path, tmp_path: Path
) -> None:
    found = run(tiny_config(tiny_base, tmp_path / "run", **OF_ROLLOUT, **changes), actor_pool)
    assert says_of_policy(found) == [True, False]
    bound = 0.2 if "model.dtype" in changes else 1e-4
    assert all(0 < row["mismatch_mean"] <= row["mismatch_max"] < bound and row["entropy"] > 0 for row in found.rows)


def test_an_engine_that_says_what_it_did_not_draw_is_stopped_before_its_version(
    actor_pool: ActorPool, tiny_base: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_base, tmp_path / "run", **OF_ROLLOUT)
    with pytest.raises(WeightSyncError, match=r"step 1: rollout engine and trainer differ by 0\.7\d* nats per token"):
        run(config, actor_pool, RolloutWorker="tests.support.faults:LaterShiftedRollout")
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    assert not (tmp_path / "run" / "run.json").exists()
