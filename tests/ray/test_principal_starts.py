"""Adapters that start from the weights, in real runs: SFT and PPO under ZeRO-2 train one half and keep the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlhf.config import LoraConfig, SftConfig, build_config
from rlhf.models import adapters
from rlhf.stages import training
from rlhf.stages.sft import run_sft
from tests.support.conversations import demonstrations, write_rows
from tests.support.ppo import run, tiny_config
from tests.support.resumed import assert_same, config_of, kept, resumed_at, run_and_keep
from tests.support.runtime import ActorPool

LORA = {"method": "pissa", "r": 4, "alpha": 8}


def halves(state: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """First and second half of every matrix along its rank."""
    found = {}
    for key, value in state.items():
        first, second = value.chunk(2, dim=0 if "lora_A" in key else 1)
        found[key] = first, second
    return found


@pytest.fixture
def start(tiny_base: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A fresh adapter's tensors."""
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    model = adapters.fresh(base, LoraConfig.model_validate(LORA), "default")
    return halves({key: p.detach() for key, p in adapters.adapter_parameters(model, "default")})


def test_ppo_and_the_critic(
    actor_pool: ActorPool, tiny_base: Path, tmp_path: Path, start: dict[str, tuple[Tensor, Tensor]]
) -> None:
    changes = {"lora.method": "pissa", "engine.zero_stage": 2, "placement.num_ranks": 2, "optim.learning_rate": 5e-3}
    found = run(tiny_config(tiny_base, tmp_path / "run", **changes), actor_pool)
    assert found.rows[0]["kl"] == 0.0 and found.rows[0]["ratio_first"] < 1e-4 and found.rows[1]["kl"] > 0
    critic, _ = adapters.read_adapter_file(found.run_dir / "critic")
    for state in (halves(found.adapter), halves(critic)):
        assert state.keys() == start.keys()
        for key, (mine, held) in state.items():
            torch.testing.assert_close(held, start[key][1], rtol=1e-5, atol=1e-6, msg=key)
            assert not torch.allclose(mine, start[key][0], rtol=1e-5, atol=1e-6), key


def test_sft_and_ppo_after_it(
    actor_pool: ActorPool, tiny_base: Path, tmp_path: Path, start: dict[str, tuple[Tensor, Tensor]]
) -> None:
    rows = write_rows(tmp_path / "demonstrations.jsonl", demonstrations(16))
    tree = {
        "run_dir": str(tmp_path / "sft"),
        "model": {"name": str(tiny_base), "chat_style": "plain", "dtype": "float32"},
        "data": {"train": rows, "max_sequence_tokens": 256},
        "lora": LORA,
        "optim": {"learning_rate": 5e-3, "schedule": "constant"},
        "engine": {"zero_stage": 2},
        "batch": {"minibatch_sequences": 4, "microbatch_sequences_per_gpu": 1},
        "placement": {"num_ranks": 2, "start_timeout_seconds": 400},
        "max_steps": 6,
        "num_epochs": 10,
        "telemetry": {"tensorboard": False},
    }
    with actor_pool.lent_to(training):
        trained = run_sft(build_config(SftConfig, tree, source="test"))
    assert trained["losses"][-1] < trained["losses"][0] - 0.05
    state, _ = adapters.read_adapter_file(tmp_path / "sft" / "adapter")
    for key, (mine, held) in halves(state).items():
        torch.testing.assert_close(held, start[key][1], rtol=1e-5, atol=1e-6, msg=key)
        assert not torch.allclose(mine, start[key][0], rtol=1e-5, atol=1e-6), key
    saved = json.loads((tmp_path / "sft" / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert saved["r"] == 8 and saved["lora_alpha"] == 16 and saved["init_lora_weights"] is True
    after = run(
        tiny_config(tiny_base, tmp_path / "ppo", **{"model.name": str(tmp_path / "sft"), "num_steps": 1}), actor_pool
    )
    assert after.rows[0]["kl"] == 0.0
    for key, (first, second) in halves(after.adapter).items():
        before = halves(state)[key]
        assert not torch.equal(first, before[0]) and not torch.equal(second, before[1]), "all of it is trained on"


def test_a_resumed_run_goes_on_holding(actor_pool: ActorPool, tiny_base: Path, tmp_path: Path) -> None:
    """In bf16 without ZeRO, where the layers run again in backward."""
    changes = {
        "lora.method": "pissa",
        "engine.zero_stage": 0,
        "model.dtype": "bfloat16",
        "model.gradient_checkpointing": True,
        "num_steps": 2,
        "optim.learning_rate": 5e-3,
        "sync_tolerance": 0.5,
        "ratio_tolerance": 0.5,
        "mismatch_limit": 0.5,
    }
    whole = run_and_keep(config_of(tiny_base, tmp_path / "run", **changes), actor_pool, [1])
    again = run(config_of(tiny_base, kept(whole.run_dir, 1), **changes), actor_pool)
    assert resumed_at(again) == [1]
    assert_same(whole, again)
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16)
    model = adapters.fresh(base, LoraConfig.model_validate(LORA), "default")
    start = halves({key: p.detach() for key, p in adapters.adapter_parameters(model, "default")})
    for key, (mine, held) in halves(again.adapter).items():
        torch.testing.assert_close(held.float(), start[key][1].float(), rtol=1e-2, atol=1e-3, msg=key)
        assert not torch.equal(mine.float(), start[key][0].float()), key
