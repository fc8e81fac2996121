"""Whole PPO runs whose rank and rollout worker share a GPU."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from rlhf.stages.ppo import train
from rlhf.stages.ppo_run import open_session, start
from rlhf.telemetry.metrics import read_metrics
from tests.support.ppo import tiny_config

SHARES: dict[str, Any] = {
    "placement.layout": "colocated", "placement.gpus_per_rank": 0.5, "placement.gpus_per_rollout_worker": 0.5,
    "placement.num_rollout_workers": 1, "model.dtype": "bfloat16", "sync_tolerance": 0.3, "ratio_tolerance": 0.3,
    "rollout.max_response_tokens": 40,
}  # fmt: skip


def run(base: Path, run_dir: Path, **changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the rollout worker says of itself, and all metrics rows."""
    with ExitStack() as stack:
        started = start(open_session(tiny_config(base, run_dir, **SHARES, **changes), stack), stack)
        said = started.fleet.call("describe")[0]
        train(started, lambda *_, **__: None)
    return said, read_metrics(run_dir)


@pytest.mark.parametrize(
    ("name", "changes", "borrows"),
    [
        ("zero1", {"engine.zero_stage": 1}, True),
        ("zero2-nf4", {"engine.zero_stage": 2, "model.quantization": "nf4"}, True),
        ("zero3", {"engine.zero_stage": 3}, False),
        ("zero0", {"engine.zero_stage": 0, "model.gradient_checkpointing": True}, True),
    ],
)
def test_policy_and_critic_learn(
    name: str, changes: dict[str, Any], borrows: bool, tiny_base: Path, tmp_path: Path
) -> None:
    said, rows = run(tiny_base, tmp_path / name, **changes)
    assert said["borrows_base"] is borrows
    assert len(rows) == 2 and all(row["updates_skipped"] == 0 for row in rows)
    assert all(row["speed.learn_tflops"] > 0 and row["sync.milliseconds"] > 0 for row in rows)
    assert all(row["ratio_first"] < 0.3 for row in rows)
