"""Whole PPO runs whose rollouts come from vLLM, in Ray actors, beside DeepSpeed ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.models.adapters import read_adapter_file
from rlhf.models.source import resolve_model
from rlhf.stages.ppo import run_ppo
from rlhf.telemetry.metrics import read_metrics
from tests.support.ppo import tiny_config

BASE = "builtin:helpline_base"
VLLM: dict[str, Any] = {
    "rollout.engine": "vllm", "rollout.microbatch_sequences": 16, "placement.num_rollout_workers": 1,
    "placement.call_timeout_seconds": 600, "recovery.generate_timeout_seconds": 300, "num_steps": 3,
}  # fmt: skip


WAYS: dict[str, dict[str, Any]] = {
    "in turn": {},
    "a step ahead": {"rollout.overlap": 1, "loss.importance_cap": 2.0},
    "old log-probs of the engine": {"loss.old_logprobs": "rollout"},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_policy_learns_from_what_vllm_draws(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    config = tiny_config(Path(BASE), tmp_path / "run", **VLLM, **WAYS[way])
    summary = run_ppo(config)
    rows = read_metrics(tmp_path / "run")
    assert len(rows) == 3 and summary["adapter_version"] == 3
    assert summary["sync"]["max_logprob_diff"] < 2e-4, "every version that vLLM took is the trainer's"
    assert all(row["updates_skipped"] == 0 and 0 < row["response_tokens_mean"] <= 12 for row in rows)
    fresh = rows[:1] if "overlap" in str(WAYS[way]) else rows  # later ones are drawn by an older policy
    assert all(row["mismatch_max"] < 0.02 for row in fresh), "what vLLM says it drew is what the ranks say"
    assert all(row["mismatch_mean"] < 0.5 for row in rows)
    trained, _ = read_adapter_file(tmp_path / "run" / "adapter")
    moved = [float(value.abs().max()) for name, value in trained.items() if "lora_B" in name]
    assert min(moved) > 0, "every up matrix begins at zero"
    assert Path(resolve_model(BASE).base).is_dir()
