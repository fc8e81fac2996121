"""TRL 1.12's PPOTrainer on the workload of ``ppo_vs_trl.py``: one process, its JSON line is read there.

TRL removed PPO after 1.12; this runs under a PYTHONPATH that holds that release alone.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer


class Clock(TrainerCallback):
    """When each PPO step ended."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.marks.append(time.perf_counter())


def load(cls: Any, directory: str, dtype: torch.dtype, pad_id: int, **options: Any) -> Any:
    """One of the four models."""
    model = cls.from_pretrained(directory, dtype=dtype, **options)
    model.config.pad_token_id = pad_id
    return model


def main(order: dict[str, Any]) -> dict[str, Any]:
    """Runs the steps; seconds of each step but the first, and the process's memory."""
    torch.set_num_threads(order["threads"])
    imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    work, directory = order["workload"], order["model"]
    dtype = getattr(torch, work["dtype"])
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
    count = work["prompts_per_step"]
    rows = Dataset.from_list([{"input_ids": ids} for ids in order["prompts"]])
    clock = Clock()
    heads = {"num_labels": 1}
    args = PPOConfig(
        output_dir=order["output"], use_cpu=True, bf16=False, gradient_checkpointing=False, seed=order["seed"],
        per_device_train_batch_size=count // work["minibatches"], gradient_accumulation_steps=work["minibatches"],
        num_mini_batches=work["minibatches"], num_ppo_epochs=work["epochs"], total_episodes=count * work["steps"],
        response_length=work["response_tokens"], local_rollout_forward_batch_size=count, temperature=1.0,
        learning_rate=work["learning_rate"], report_to=[], num_sample_generations=0, save_strategy="no",
        disable_tqdm=True, logging_strategy="no", missing_eos_penalty=None,
        stop_token="eos" if work["natural"] else None,
    )  # fmt: skip
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=load(AutoModelForCausalLM, directory, dtype, tokenizer.pad_token_id),
        ref_model=None,
        reward_model=load(AutoModelForSequenceClassification, directory, dtype, tokenizer.pad_token_id, **heads),
        value_model=load(AutoModelForSequenceClassification, directory, dtype, tokenizer.pad_token_id, **heads),
        train_dataset=rows,
        eval_dataset=rows.select(range(2)),
        peft_config=LoraConfig(
            r=work["lora_r"], lora_alpha=2 * work["lora_r"], target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[clock],
    )
    trainer.train()
    seconds = clock.marks[-1] - clock.marks[0]
    return {
        "step_seconds": seconds / (len(clock.marks) - 1),
        "samples_per_second": count * (len(clock.marks) - 1) / seconds,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "imports_rss_mib": imports,
    }


if __name__ == "__main__":
    found = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    print(json.dumps(found))
