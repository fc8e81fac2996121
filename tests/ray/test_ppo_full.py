"""A policy that is trained whole: as a run with an adapter, but its weights travel, and a model is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlhf.models.source import resolve_model
from tests.ray.test_ppo_resume import assert_same, config_of, kept, resumed_at, run_and_keep
from tests.support.ppo import FEW_PASSES, Finished, run, tiny_config
from tests.support.runtime import ActorPool

WHOLE: dict[str, Any] = {"policy_weights": "full", "optim.learning_rate": 3e-4, "critic_learning_rate": 1e-3}
METRICS = ("policy_loss", "value_loss", "grad_norm", "approx_kl", "kl", "entropy", "score_mean")


def weights_of(found: Finished) -> dict[str, Tensor]:
    return load_file(found.run_dir / "model" / "model.safetensors")


def distance(one: Finished, two: Finished) -> dict[str, float]:
    found = {key: max(abs(a - b) for a, b in zip(one.series(key), two.series(key), strict=True)) for key in METRICS}
    ours, theirs = weights_of(one), weights_of(two)
    assert ours.keys() == theirs.keys()
    return {**found, "weights": max(float((ours[k] - theirs[k]).abs().max()) for k in ours)}


@pytest.fixture(scope="module")
def plain(actor_pool: ActorPool, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run(tiny_config(tiny_base, tmp_path_factory.mktemp("whole") / "run", **WHOLE), actor_pool)


def test_all_weights_learn_and_travel(plain: Finished, tiny_base: Path) -> None:
    before, after = load_file(tiny_base / "model.safetensors"), weights_of(plain)
    assert before.keys() == after.keys()
    moved = {name for name in before if float((before[name] - after[name]).abs().max()) > 1e-5}
    assert moved == before.keys(), f"these stayed as they were: {sorted(before.keys() - moved)}"
    count = sum(tensor.numel() for tensor in before.values())
    assert plain.summary["trainable"]["policy"] == count
    assert plain.series("sync.bytes") == [4.0 * count] * 2
    assert plain.rows[0]["kl"] < 1e-6 and plain.rows[1]["kl"] > 1e-4, "the reference is the start policy and stays"
    assert all(value < 1e-4 for value in plain.series("ratio_first"))
    assert all(value < 1e-4 for value in plain.series("mismatch_max"))
    assert all(value <= 1e-4 for value in plain.series("sync.max_logprob_diff"))
    assert plain.series("adapter_version") == [1, 2]


def test_the_next_stage_takes_the_model(plain: Finished) -> None:
    source = resolve_model(str(plain.run_dir))
    assert source.adapter is None and source.base == str(plain.run_dir / "model")
    model: Any = AutoModelForCausalLM.from_pretrained(source.base)
    saved = weights_of(plain)
    assert all(torch.equal(parameter, saved[name]) for name, parameter in model.named_parameters())


VARIANTS: list[dict[str, Any]] = [
    {"placement.num_ranks": 2, "engine.zero_stage": 2, "sync_chunk_bytes": 20_000},
    {"placement.num_ranks": 2, "engine.zero_stage": 3, "sync_chunk_bytes": 20_000, **FEW_PASSES},
    {"model.gradient_checkpointing": True, "batch.microbatch_tokens_per_gpu": 64},
    {"as": "ChunkingPolicy", "placement.num_ranks": 2, "engine.zero_stage": 2},
    {"as": "ChunkingPolicy", "placement.num_ranks": 2, "engine.zero_stage": 3},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: ",".join(f"{k.split('.')[-1]}={v}" for k, v in c.items()))
def test_ranks_stages_and_pieces_do_not_change_what_is_learned(
    changes: dict[str, Any], plain: Finished, actor_pool: ActorPool, tiny_base: Path, tmp_path: Path
) -> None:
    changes = dict(changes)
    worker = changes.pop("as", None)
    workers = {} if worker is None else {"PolicyWorker": f"tests.support.faults:{worker}"}
    other = run(tiny_config(tiny_base, tmp_path / "run", **WHOLE, **changes), actor_pool, **workers)
    found = distance(plain, other)
    assert found["weights"] < 5e-5 and found["grad_norm"] < 5e-4, found
    parts = next(answer[0]["snapshot_parts"] for method, answer in other.answers if method == "describe")
    assert parts > 5 if "sync_chunk_bytes" in changes else parts == 1


def test_an_sft_adapter_is_merged_into_what_is_trained(actor_pool: ActorPool, tiny_base: Path, tmp_path: Path) -> None:
    first = run(tiny_config(tiny_base, tmp_path / "first"), actor_pool)
    config = tiny_config(tiny_base, tmp_path / "run", **WHOLE, **{"model.name": str(first.run_dir)})
    found = run(config, actor_pool)
    assert found.rows[0]["kl_max"] < 1e-4 and found.series("mismatch_max")[0] < 1e-4
    assert found.summary["trainable"]["policy"] == sum(t.numel() for t in weights_of(found).values())


def test_a_cut_run_goes_on_as_if_nothing_had_happened(actor_pool: ActorPool, tiny_base: Path, tmp_path: Path) -> None:
    changes = {**WHOLE, "engine.zero_stage": 1, "sync_chunk_bytes": 20_000}
    whole = run_and_keep(config_of(tiny_base, tmp_path / "whole", **changes), actor_pool, [2])
    again = run(config_of(tiny_base, kept(whole.run_dir, 2), **changes), actor_pool)
    assert_same(whole, again)
    assert resumed_at(again) == [2]
    ours, theirs = weights_of(whole), weights_of(again)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
