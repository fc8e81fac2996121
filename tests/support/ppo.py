"""Small PPO runs for tests: a tiny model, ragged prompts, a countable reward."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from rlhf.config import PpoConfig, build_config
from rlhf.models.adapters import read_adapter_file
from rlhf.stages import ppo, ppo_run
from tests.support.runtime import ActorPool

FEW_PASSES = {"batch.microbatch_sequences_per_gpu": 4}
"""Half as many passes: under ZeRO-3 ranks wait for each other at every layer of each, and cores are few."""
PROMPTS = ("Once upon a time", "The dog", "What should I eat today?", "A red ball and", "They ran", "Ask")


@dataclass(frozen=True)
class Finished:
    """What a run left behind."""

    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    run_dir: Path
    answers: list[tuple[str, list[Any]]]

    @property
    def adapter(self) -> dict[str, Tensor]:
        """The policy's final tensors."""
        return read_adapter_file(self.run_dir / "adapter")[0]

    def series(self, key: str) -> list[float]:
        """One metric over the steps."""
        return [row[key] for row in self.rows]


def tiny_config(base: Path, run_dir: Path, **changes: Any) -> PpoConfig:
    """Two PPO steps of four optimizer steps, each of several micro-steps; dotted keys change it."""
    prompts = run_dir.parent / f"{run_dir.name}.prompts.jsonl"
    prompts.parent.mkdir(parents=True, exist_ok=True)
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS), encoding="utf-8")
    tree: dict[str, Any] = {
        "run_dir": str(run_dir),
        "model": {"name": str(base), "chat_style": "plain", "dtype": "float32"},
        "prompts": str(prompts),
        "scores": [{"kind": "function", "path": "tests.support.scores:count_e"}],
        "lora": {"r": 4, "alpha": 8},
        "optim": {"learning_rate": 1e-3, "eps": 1e-5, "schedule": "constant"},
        "engine": {"zero_stage": 0},
        "placement": {"num_ranks": 1, "num_rollout_workers": 2, "start_timeout_seconds": 400},
        "rollout": {"max_response_tokens": 12, "max_prompt_tokens": 32},
        "batch": {
            "prompts_per_step": 4,
            "responses_per_prompt": 4,
            "minibatch_sequences": 8,
            "microbatch_sequences_per_gpu": 2,
            "epochs": 2,
        },
        "loss": {"value_clip": None, "value_coef": 0.5},
        "telemetry": {"tensorboard": False},
        "num_steps": 2,
    }
    for key, value in changes.items():
        node = tree
        *parents, last = key.replace("__", ".").split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return build_config(PpoConfig, tree, source="test")


def run(config: PpoConfig, pool: ActorPool, *, progress: ppo.Progress | None = None, **substitutes: str) -> Finished:
    """Runs the recipe on the pool's actors.

    Args:
        progress: what ``ppo.run_ppo`` calls after every step.
        substitutes: ``PolicyWorker``, ``CriticWorker``, ``RolloutWorker`` or ``ScorerWorker`` = another class as
            "module:Class".
    """
    homes = {
        "PolicyWorker": "rlhf.workers.policy:PolicyWorker",
        "CriticWorker": "rlhf.workers.critic:CriticWorker",
        "RolloutWorker": "rlhf.workers.rollout:RolloutWorker",
        "ScorerWorker": "rlhf.workers.scorer:ScorerWorker",
    }
    pool.substitutes = {homes[name]: value for name, value in substitutes.items()}
    pool.answers = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo_run, "WorkerGroup", pool)
        patch.setattr(ppo_run, "reserve_places", lambda session: None)  # the pool's actors outlive the run
        summary = ppo.run_ppo(config, progress=progress)
    return finished(config, summary, pool.answers)


def finished(config: PpoConfig, summary: dict[str, Any], answers: list[tuple[str, list[Any]]]) -> Finished:
    """Reads what a run wrote."""
    run_dir = Path(config.run_dir)
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return Finished(summary, [flat(json.loads(line)) for line in lines], run_dir, answers)


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A metrics row with its values at the top."""
    values = row.get("values", {})
    return {**{k: v for k, v in row.items() if k != "values"}, **values}
