"""Run directories as the stages leave them, without the training."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import peft
import torch

from rlhf.config import ModelConfig
from rlhf.data.chat import chat_format
from rlhf.models import adapters
from rlhf.models.loading import load_causal_lm
from rlhf.models.scorer import HEAD, RewardSettings
from rlhf.models.source import RunRecord, base_fingerprint, read_run_record, resolve_model
from rlhf.models.tokenizer import load_tokenizer
from tests.support.tiny import build_model, build_tokenizer, copy_with


def write_run(run: Path, base: Path, stage: str = "sft", *, chat_style: Literal["auto", "plain"] = "plain") -> Path:
    """A finished SFT or reward run with an untrained adapter."""
    source, config = resolve_model(str(base)), ModelConfig(name=str(base), chat_style=chat_style)
    tokenizer = load_tokenizer(source, config)
    shape = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = adapters.attach(load_causal_lm(source, config, tokenizer), shape, "policy")
    state = {name: p.detach() for name, p in adapters.adapter_parameters(model, "policy")}
    if stage == "reward":
        state["score.weight"] = torch.zeros(1, 64)
    adapters.save_adapter_file(run / "adapter", shape, str(base), state)
    if stage == "reward":
        RewardSettings(0.0, 1.0, 4, "float32", {}).write(run / "adapter")
    tokenizer.save_pretrained(run / "tokenizer")
    print_ = chat_format(tokenizer, chat_style).fingerprint()
    RunRecord(stage, str(base), None, "adapter", "none", chat_style, print_, base_fingerprint(str(base))).write(run)
    return run


def write_reward_run(directory: Path, base: Path, seed: int) -> Path:
    """A reward run whose scores differ from text to text."""
    found = write_run(directory, base, "reward")
    state, _ = adapters.read_adapter_file(found / "adapter")
    head = torch.randn(1, 64, generator=torch.Generator().manual_seed(seed))
    shape = adapters.read_peft_config(found / "adapter")
    adapters.save_adapter_file(found / "adapter", shape, resolve_model(str(found)).base, {**state, HEAD: head})
    RewardSettings(0.25, 1.5, 4, "float32", {}).write(found / "adapter")
    return found


def recorded_with(run: Path, directory: Path, **changes: Any) -> Path:
    """A copy of a run whose record says something else."""
    shutil.copytree(run, directory)
    replace(read_run_record(run), **changes).write(directory)
    return directory


def foreign_base(folder: Path) -> Path:
    """A small model with other weights that reads other tokens."""
    return copy_with(build_model(folder / "model", seed=1), folder / "other", build_tokenizer(vocab_size=280))
