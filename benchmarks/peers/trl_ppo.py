"""TRL 1.12's PPOTrainer on the workload of ``ppo_vs_trl.py``: one process, its JSON line is read there."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl_parts import QUIET, PPOConfig, classifier, make_trainer


class Clock(TrainerCallback):
    """When each PPO step ended."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.marks.append(time.perf_counter())


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
    args = PPOConfig(
        output_dir=order["output"], seed=order["seed"], per_device_train_batch_size=count // work["minibatches"],
        gradient_accumulation_steps=work["minibatches"], num_mini_batches=work["minibatches"],
        num_ppo_epochs=work["epochs"], total_episodes=count * work["steps"], response_length=work["response_tokens"],
        local_rollout_forward_batch_size=count, learning_rate=work["learning_rate"], logging_strategy="no",
        stop_token="eos" if work["natural"] else None, **QUIET,
    )  # fmt: skip
    trainer = make_trainer(
        args,
        directory,
        dtype,
        tokenizer,
        rows,
        work["lora_r"],
        reward=classifier(directory, dtype, tokenizer),
        callback=clock,
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
