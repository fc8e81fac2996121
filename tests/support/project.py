"""A small project on disk: a tiny model, rows, and one config per stage that fits on any cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.support.conversations import demonstrations, preferences, write_rows
from tests.support.tiny import build_model

PROMPTS = ("Once upon a time", "The dog", "What should I eat today?", "A red ball and", "They ran", "Ask")
STAGES = ("sft", "reward", "ppo")


def write_project(folder: Path, *, base: Path | None = None, **placement: Any) -> Path:
    """Writes model, rows and ``sft.yaml``, ``reward.yaml``, ``ppo.yaml`` with relative run directories.

    Args:
        base: a model directory to name instead of building one.
        placement: keys of the placement section of every stage.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base = base or build_model(folder.resolve() / "base")
    write_rows(folder / "demonstrations.jsonl", demonstrations(32))
    write_rows(folder / "preferences.jsonl", preferences(32))
    prompts = "".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS)
    (folder / "prompts.jsonl").write_text(prompts, encoding="utf-8")
    places = {"num_ranks": 2, "start_timeout_seconds": 120, "call_timeout_seconds": 120, **placement}
    shared = {
        "lora": {"r": 4, "alpha": 8},
        "optim": {"learning_rate": 1e-3, "schedule": "constant"},
        "engine": {"zero_stage": 2},
        "telemetry": {"tensorboard": False},
    }
    small = {"eval_fraction": 0.0, "max_sequence_tokens": 256}
    trees: dict[str, dict[str, Any]] = {
        "sft": {
            "model": {"name": str(base), "chat_style": "default", "dtype": "float32"},
            "data": {"train": "demonstrations.jsonl", **small},
            "batch": {"minibatch_sequences": 8, "microbatch_sequences_per_gpu": 2},
            "max_steps": 3,
        },
        "reward": {
            "model": {"name": "runs/sft", "chat_style": "default", "dtype": "float32"},
            "data": {"train": "preferences.jsonl", **small},
            "batch": {"minibatch_pairs": 8, "microbatch_pairs_per_gpu": 2},
            "max_steps": 3,
        },
        "ppo": {
            "model": {"name": "runs/sft", "chat_style": "default", "dtype": "float32"},
            "prompts": "prompts.jsonl",
            "scores": [{"kind": "reward_model", "run": "runs/reward"}],
            "rollout": {"max_response_tokens": 12, "max_prompt_tokens": 64},
            "batch": {
                "prompts_per_step": 4,
                "responses_per_prompt": 2,
                "minibatch_sequences": 8,
                "microbatch_sequences_per_gpu": 2,
                "epochs": 2,
            },
            "loss": {"value_clip": None, "value_coef": 0.5},
            "num_steps": 3,
        },
    }
    for stage, tree in trees.items():
        own = places | ({"num_rollout_workers": 2} if stage == "ppo" else {})
        tree = {"stage": stage, "run_dir": f"runs/{stage}", **tree, **shared, "placement": own}
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return folder
