"""SFT, reward and DPO training go on from any commit as if nothing had happened, and survive the death of a rank."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf.config import DpoConfig, RewardConfig, SftConfig, build_config
from rlhf.engine.checkpoint.manifest import file_sha256
from rlhf.stages import training
from rlhf.stages.dpo import run_dpo
from rlhf.stages.reward import run_reward
from rlhf.stages.sft import run_sft
from rlhf.telemetry.events import read_events
from rlhf.telemetry.metrics import read_metrics
from rlhf.workers.group import WorkerGroup
from tests.support.chaos_faults import Faults
from tests.support.conversations import demonstrations, preferences, write_rows
from tests.support.runtime import ActorPool, gone

STEPS = 6
NOT_COMPARED = ("time", "epoch", "seconds")


@pytest.fixture
def lent(actor_pool: ActorPool) -> Iterator[None]:
    """Ranks that train one run after the other."""
    with actor_pool.lent_to(training):
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("rows")
    return {
        "sft": write_rows(folder / "demonstrations.jsonl", demonstrations(24)),
        "sft_eval": write_rows(folder / "held_out.jsonl", demonstrations(5, seed=9)),
        "reward": write_rows(folder / "preferences.jsonl", preferences(24)),
        "reward_eval": write_rows(folder / "held_out_pairs.jsonl", preferences(9, seed=9, first=100)),
        "dpo": str(folder / "preferences.jsonl"),
        "dpo_eval": str(folder / "held_out_pairs.jsonl"),
    }


def train(stage: str, base: Path, files: dict[str, str], run_dir: Path, zero: int, **changes: Any) -> dict[str, Any]:
    """Dropout (none in DPO), a schedule, early stopping with its best weights: everything that has state is in use."""
    unit = "sequences" if stage == "sft" else "pairs"
    tree: dict[str, Any] = {
        "run_dir": str(run_dir),
        "model": {"name": str(base)},
        "data": {"train": files[stage], "evaluation": files[f"{stage}_eval"], "max_sequence_tokens": 256},
        "lora": {"r": 4, "alpha": 8, "dropout": 0.0 if stage == "dpo" else 0.1},
        "optim": {"learning_rate": 1e-3, "schedule": "linear"},
        "batch": {f"minibatch_{unit}": 4, f"microbatch_{unit}_per_gpu": 1},
        "max_steps": STEPS,
        "num_epochs": 10,
        "eval_every_steps": 2,
        "early_stopping_patience": 3,
        "checkpoint": {"every": 1, "keep_last": 100},
        "engine": {"zero_stage": zero},
        "placement": {"num_ranks": 2, "start_timeout_seconds": 500, "collective_timeout_seconds": 120},
        "telemetry": {"tensorboard": False},
    } | changes
    if stage == "sft":
        return run_sft(build_config(SftConfig, tree, source="test"))
    if stage == "dpo":
        return run_dpo(build_config(DpoConfig, tree, source="test"))
    return run_reward(build_config(RewardConfig, tree, source="test"))


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    """Every record but for what a clock wrote."""
    kept = []
    for row in read_metrics(run_dir):
        kept.append({key: value for key, value in row.items() if not key.startswith(NOT_COMPARED)})
    return kept


def only_commit(whole: Path, step: int, target: Path) -> None:
    """A run directory as a kill after ``step`` would have left it; the metrics run ahead of the commit.

    Those that run ahead are not the whole run's: what is compared with it later must have been written anew.
    """
    commit = whole / "checkpoints" / f"step-{step:08d}"
    shutil.copytree(commit, target / "checkpoints" / commit.name)
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert max(row["step"] for row in rows) > step
    kept = [row if row["step"] <= step else {"stage": row["stage"], "step": row["step"], "spoiled": 1} for row in rows]
    text = "".join(json.dumps(row) + "\n" for row in kept)
    (target / "metrics.jsonl").write_text(text, encoding="utf-8")


ZERO = {"sft": 2, "reward": 3, "dpo": 2}


@pytest.fixture(scope="module")
def whole_runs(
    actor_pool: ActorPool, tiny_model_dir: Path, files: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[dict[str, Any], Path]]:
    """All three stages without a fault: figures and run directory."""
    place = tmp_path_factory.mktemp("whole")
    with actor_pool.lent_to(training):
        return {
            stage: (train(stage, tiny_model_dir, files, place / stage, zero), place / stage)
            for stage, zero in ZERO.items()
        }


@pytest.mark.parametrize(("stage", "cuts"), [("sft", (1, 4)), ("reward", (3,)), ("dpo", (3,))])
def test_a_resumed_run_is_the_same_run(
    stage: str,
    cuts: tuple[int, ...],
    whole_runs: dict[str, tuple[dict[str, Any], Path]],
    lent: None,
    tiny_model_dir: Path,
    files: dict[str, str],
    tmp_path: Path,
) -> None:
    whole, whole_dir = whole_runs[stage]
    reference = file_sha256(whole_dir / "adapter" / "adapter_model.safetensors")
    assert len(whole["losses"]) == STEPS
    for cut in cuts:
        run_dir = tmp_path / f"cut-{cut}"
        only_commit(whole_dir, cut, run_dir)
        again = train(stage, tiny_model_dir, files, run_dir, ZERO[stage])
        assert again["losses"] == whole["losses"] and again["eval_loss"] == whole["eval_loss"]
        assert file_sha256(run_dir / "adapter" / "adapter_model.safetensors") == reference
        assert rows_of(run_dir) == rows_of(whole_dir)
        assert [e["step"] for e in read_events(run_dir) if e["event"] == "resumed"] == [cut]


def test_a_run_cut_after_its_patience_ran_out_is_over(
    lent: None, tiny_model_dir: Path, files: dict[str, str], tmp_path: Path
) -> None:
    """The commit of that step is there, the adapter is not: what is left is to put the best weights back."""
    optim = {"learning_rate": 0.15, "schedule": "constant", "max_grad_norm": 100.0}
    whole_step = {"minibatch_sequences": 4, "microbatch_sequences_per_gpu": 2}  # in one pass: nothing ends it half-way
    changes = {
        "optim": optim,
        "early_stopping_patience": 1,
        "eval_every_steps": 1,
        "max_steps": 30,
        "batch": whole_step,
    }
    whole = train("sft", tiny_model_dir, files, tmp_path / "whole", 2, **changes)
    last = whole["num_steps"]
    assert whole["stopped_early"] and last < 30
    commit = tmp_path / "whole" / "checkpoints" / f"step-{last:08d}"
    shutil.copytree(commit, tmp_path / "cut" / "checkpoints" / commit.name)
    shutil.copy(tmp_path / "whole" / "metrics.jsonl", tmp_path / "cut" / "metrics.jsonl")
    again = train("sft", tiny_model_dir, files, tmp_path / "cut", 2, **changes)
    assert [e["step"] for e in read_events(tmp_path / "cut") if e["event"] == "resumed"] == [last]
    for key in ("losses", "num_steps", "stopped_early", "best_step", "eval_loss", "evaluations"):
        assert again[key] == whole[key], key
    adapters = [tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("whole", "cut")]
    assert file_sha256(adapters[0]) == file_sha256(adapters[1])
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    described = json.loads((tmp_path / "cut" / "config.json").read_text(encoding="utf-8"))
    assert described["num_steps"] == 30, "what it set out to do"


def test_a_killed_rank_is_replaced_from_the_last_commit(
    whole_runs: dict[str, tuple[dict[str, Any], Path]],
    tiny_model_dir: Path,
    files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, whole_dir = whole_runs["sft"]
    groups: list[WorkerGroup] = []
    launch = WorkerGroup.launch

    def fragile(worker: str, *args: Any, **options: Any) -> WorkerGroup:
        groups.append(launch("tests.support.fragile.sft:FragileSft", *args, **options))
        return groups[-1]

    monkeypatch.setattr(WorkerGroup, "launch", fragile)
    faults = Faults(tmp_path / "killed")
    faults.arm("step-2-1")
    again = train("sft", tiny_model_dir, files, tmp_path / "killed", ZERO["sft"])
    assert faults.left() == [] and gone(list(faults.fired().values()))
    assert len(groups) == 2 and again["restarts"] == 1
    assert [e["step"] for e in read_events(tmp_path / "killed") if e["event"] == "resumed"] == [2]
    assert again["losses"] == whole["losses"]
    assert file_sha256(tmp_path / "killed" / "adapter" / "adapter_model.safetensors") == file_sha256(
        whole_dir / "adapter" / "adapter_model.safetensors"
    )
    events = [e["event"] for e in read_events(tmp_path / "killed") if e.get("fault") == "sft-1"]
    assert events == ["fault_detected", "fault_resolved"]
    assert json.loads((tmp_path / "killed" / "run.json").read_text())
