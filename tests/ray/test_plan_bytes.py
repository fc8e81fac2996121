"""What ``rlhf plan`` predicts for a training rank, against the tensors of real DeepSpeed ranks after a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.memory_model import (
    ADAM_BYTES,
    MASTER_BYTES,
    adapter_tensors,
    base_tensors,
    elements,
    resident,
    training_state,
)
from cluster.shapes import find_shape
from tests.support.ppo import run, tiny_config
from tests.support.runtime import ActorPool
from tests.support.tiny import build_model

RANKS = 2


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough that ZeRO-3 cuts some matrices and keeps others whole."""
    return build_model(
        tmp_path_factory.mktemp("wide") / "base", hidden_size=384, intermediate_size=1024, num_attention_heads=6
    )


CASES = [
    (0, "bfloat16", False),
    (0, "float32", True),
    (1, "float32", False),
    (2, "bfloat16", False),
    (3, "bfloat16", False),
]


@pytest.mark.parametrize(("stage", "dtype", "whole"), CASES)
def test_bytes_of_a_rank(
    stage: int, dtype: str, whole: bool, wide_base: Path, actor_pool: ActorPool, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "engine.zero_stage": stage,
        "placement.num_ranks": RANKS,
        "model.dtype": dtype,
        "batch.epochs": 1,
        "num_steps": 1,
        "sync_tolerance": 0.5,
        "ratio_tolerance": 0.5,
        "policy_weights": "full" if whole else "adapter",
    }
    config = tiny_config(wide_base, tmp_path / "run", **changes)
    done = run(config, actor_pool, PolicyWorker="tests.support.measured:MeasuredPolicy")
    ranks = [figures["bytes"] for figures in next(found for method, found in done.answers if method == "learn")]
    shape, width = find_shape(str(wide_base)), 4 if dtype == "float32" else 2
    one = adapter_tensors(shape, config.lora, width)
    base = base_tensors(shape, config.model, width)
    trained = one + (base if whole else one)  # critic and policy
    state = training_state(trained, config.engine, RANKS, width=width)
    predicted = {
        "base": resident(base * (2 if whole else 1), config.engine, RANKS),
        "adapters": resident((2 if whole else 3) * one, config.engine, RANKS),  # critic, reference, policy
        "gradients": state.gradients,
        "optimizer": state.optimizer,
        "bucket": config.engine.reduce_bucket_elements * width if stage == 3 else 0,
    }
    if stage:
        assert state.optimizer == elements(trained) / RANKS * (MASTER_BYTES + ADAM_BYTES)
    assert len(ranks) == RANKS
    assert [measured["own_pages"] for measured in ranks] == [
        0,
        0,
    ]  # the frozen base is the file's, whatever was trained
    for measured in ranks:
        found = {**measured, "optimizer": measured["optimizer"] + measured["master"]}
        print(stage, dtype, {key: f"{value:.0f}/{found[key]}" for key, value in predicted.items()})
        for key, value in predicted.items():
            assert value == pytest.approx(found[key], rel=0.05), key
