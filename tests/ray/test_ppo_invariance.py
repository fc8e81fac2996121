"""Neither ZeRO stage, nor ranks, micro-batches, recomputation, nor logits in chunks change what PPO learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.ppo import FEW_PASSES, Finished, run, tiny_config
from tests.support.runtime import ActorPool

METRICS = ("policy_loss", "value_loss", "grad_norm", "approx_kl", "kl", "entropy", "score_mean", "clip_fraction")


@pytest.fixture(scope="module")
def plain(actor_pool: ActorPool, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """ZeRO-0 on one rank: eight optimizer steps of four micro-steps each on ragged rows."""
    return run(tiny_config(tiny_base, tmp_path_factory.mktemp("plain") / "run"), actor_pool)


def differences(one: Finished, two: Finished) -> dict[str, float]:
    found = {key: max(abs(a - b) for a, b in zip(one.series(key), two.series(key), strict=True)) for key in METRICS}
    ours, theirs = one.adapter, two.adapter
    assert ours.keys() == theirs.keys() and len(ours) == 28
    found["adapter"] = max(float((ours[k] - theirs[k]).abs().max()) for k in ours)
    return found


def test_the_plain_run_is_worth_comparing_with(plain: Finished) -> None:
    assert sum(plain.series("updates")) == 8
    lengths = plain.series("response_tokens_mean")
    assert all(1 < length <= 12 for length in lengths)
    assert plain.rows[0]["value_loss"] > 0 and plain.rows[0]["grad_norm"] > 0.01
    moved = max(float(v.abs().max()) for k, v in plain.adapter.items() if "lora_B" in k)
    assert moved > 1e-3, "the adapter has not moved: nothing is compared"


def test_the_loop_s_own_invariants(plain: Finished) -> None:
    assert plain.rows[0]["kl"] == 0.0 and plain.rows[0]["kl_max"] == 0.0
    assert all(value < 1e-4 for value in plain.series("ratio_first"))
    assert all(value <= 1e-4 for value in plain.series("sync.max_logprob_diff"))
    assert all(value < 1e-4 for value in plain.series("mismatch_max"))
    assert plain.summary["adapter_version"] == 2 and plain.series("adapter_version") == [1, 2]
    assert plain.summary["engine"] == "DeepSpeedEngine"
    assert all(value > 0 for key in ("learn_tflops", "learn_peak_share") for value in plain.series(f"speed.{key}"))


BRIEF_ZERO3: dict[str, Any] = {"engine.zero_stage": 3, "placement.num_ranks": 2, **FEW_PASSES}
"""One pass per update and rank; that several add up under ZeRO-3 is shown by the cases without it."""
VARIANTS: list[dict[str, Any]] = [
    *({"engine.zero_stage": stage} for stage in (1, 2, 3)),
    *({"engine.zero_stage": stage, "placement.num_ranks": 2} for stage in (0, 1, 2, 3)),
    {"batch.microbatch_sequences_per_gpu": 8},
    {"batch.microbatch_sequences_per_gpu": 1, "placement.num_ranks": 2, "engine.zero_stage": 2},
    {"batch.microbatch_tokens_per_gpu": 64},
    {"batch.microbatch_tokens_per_gpu": 48, "placement.num_ranks": 2, "engine.zero_stage": 3},
    {"model.gradient_checkpointing": True},
    {"model.gradient_checkpointing": True, **BRIEF_ZERO3},
    {"as": "PartitioningPolicy", "engine.zero_stage": 3, "placement.num_ranks": 2},
    {"as": "ChunkingPolicy", "engine.zero_stage": 2},
    {"as": "ChunkingPolicy", **BRIEF_ZERO3},
    {"as": "ChunkingPolicy", "model.gradient_checkpointing": True, **BRIEF_ZERO3},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: ",".join(f"{k.split('.')[-1]}={v}" for k, v in c.items()))
def test_same_learning(
    changes: dict[str, Any],
    plain: Finished,
    actor_pool: ActorPool,
    tiny_base: Path,
    tmp_path: Path,
    record_property: Any,
) -> None:
    changes = dict(changes)
    worker = changes.pop("as", None)
    workers = {} if worker is None else {"PolicyWorker": f"tests.support.faults:{worker}"}
    other = run(tiny_config(tiny_base, tmp_path / "run", **changes), actor_pool, **workers)
    assert other.summary["zero_stage"] == changes.get("engine.zero_stage", 0)
    assert other.summary["num_ranks"] == changes.get("placement.num_ranks", 1)
    found = differences(plain, other)
    for key, value in found.items():
        record_property(key, value)
    print({key: f"{value:.1e}" for key, value in found.items()})
    assert found["adapter"] < 2e-5
    assert found["score_mean"] == 0.0  # the same text was drawn
    assert all(found[key] < 2e-5 for key in METRICS)
    learned = [results for method, results in other.answers if method == "learn"]
    assert all(result == results[0] for results in learned for result in results), "ranks report different figures"
