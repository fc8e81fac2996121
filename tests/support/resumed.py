"""PPO runs that are cut off and taken up again, and what makes two runs the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.config import PpoConfig
from rlhf.models.adapters import read_adapter_file
from rlhf.telemetry.events import read_events
from tests.support.ppo import PROMPTS, Finished, run, tiny_config
from tests.support.runtime import ActorPool

STEPS = 4
NOT_COMPARED = ("time", "seconds.", "speed.", "sync.milliseconds")


class Cut(BaseException):
    """Stands for a kill: nothing of the run's own code sees it."""


def config_of(base: Path, run_dir: Path, **changes: Any) -> PpoConfig:
    """Everything that has state is in use: a schedule, an adaptive coefficient, a critic, several epochs."""
    prompts = run_dir.parent / "prompts.jsonl"  # rows are known by their file: all runs must read the same one
    prompts.parent.mkdir(parents=True, exist_ok=True)
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS), encoding="utf-8")
    settings: dict[str, Any] = {
        "prompts": str(prompts),
        "num_steps": STEPS,
        "checkpoint.every": 1,
        "checkpoint.keep_last": 2,
        "optim.schedule": "linear",
        "kl.target": 0.001,
        "kl.horizon": 200.0,
        "critic_learning_rate": 3e-3,
        "placement.num_ranks": 2,
        **changes,
    }
    return tiny_config(base, run_dir, **settings)


def cut_after(config: PpoConfig, pool: ActorPool, step: int) -> None:
    """Runs until ``step`` steps are done, and no further."""

    def stop(done: int, total: int, **_: Any) -> None:
        if done == step:
            raise Cut

    with pytest.raises(Cut):
        run(config, pool, progress=stop)


def run_and_keep(config: PpoConfig, pool: ActorPool, cuts: Collection[int]) -> Finished:
    """A whole run; beside it, under the name that ``kept`` gives, what a kill after each of these steps leaves."""

    def keep(done: int, total: int, **_: Any) -> None:
        if done in cuts:
            shutil.copytree(config.run_dir, kept(Path(config.run_dir), done))

    return run(config, pool, progress=keep)


def kept(run_dir: Path, cut: int) -> Path:
    """Where ``run_and_keep`` puts a run as it was after a step."""
    return run_dir.with_name(f"{run_dir.name}-cut-{cut}")


def resumed_at(found: Finished) -> list[int]:
    """The steps at which a run was taken up."""
    return [event["step"] for event in read_events(found.run_dir) if event["event"] == "resumed"]


def compared(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith(NOT_COMPARED)}


def assert_same(one: Finished, two: Finished) -> None:
    assert [row["step"] for row in two.rows] == list(range(len(one.rows))), "a step is missing or on record twice"
    for ours, theirs in zip(one.rows, two.rows, strict=True):
        assert compared(ours) == compared(theirs)
    assert one.summary["adapter_sha256"] == two.summary["adapter_sha256"]
    ours, theirs = (read_adapter_file(found.run_dir / "critic") for found in (one, two))
    assert ours[1].keys() == theirs[1].keys() != set(), "the value head"
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys() and all(torch.equal(mine[key], other[key]) for key in mine)
