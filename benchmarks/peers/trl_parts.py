"""What both programs that run TRL 1.12's PPOTrainer share: its models and the trainer around them.

TRL removed PPO after 1.12; they run under a PYTHONPATH that holds that release.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

QUIET = {
    "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "temperature": 1.0, "report_to": [],
    "num_sample_generations": 0, "save_strategy": "no", "disable_tqdm": True, "missing_eos_penalty": None,
}  # fmt: skip
"""Settings of every run: nothing but the steps."""


def load(cls: Any, directory: str, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Any:
    """One of the models, with a row for every token."""
    model = cls.from_pretrained(directory, dtype=dtype, **options)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


def classifier(directory: str, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """A critic or a reward model."""
    return load(AutoModelForSequenceClassification, directory, dtype, tokenizer, num_labels=1)


def make_trainer(
    args: PPOConfig,
    directory: str,
    dtype: torch.dtype,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    lora_r: int,
    *,
    reward: nn.Module,
    callback: TrainerCallback,
) -> PPOTrainer:
    """A policy with LoRA on all linear layers, whose base is the reference, and a critic of its own."""
    return PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=load(AutoModelForCausalLM, directory, dtype, tokenizer),
        ref_model=None,
        reward_model=reward,
        value_model=classifier(directory, dtype, tokenizer),
        train_dataset=rows,
        eval_dataset=rows.select(range(2)),
        peft_config=LoraConfig(r=lora_r, lora_alpha=2 * lora_r, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[callback],
    )
