"""DPO as it really runs: Ray actors, gloo, DeepSpeed; the start policy is the reference, and nothing else moves."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.config import DpoConfig, SftConfig, build_config
from rlhf.data.chat import chat_format
from rlhf.data.loading import load_preferences
from rlhf.engine.checkpoint.manifest import file_sha256
from rlhf.models import adapters
from rlhf.models.source import resolve_model
from rlhf.stages import training
from rlhf.stages.dpo import run_dpo
from rlhf.stages.encode import encode_preferences
from rlhf.stages.sft import run_sft
from rlhf.telemetry.metrics import read_metrics
from rlhf.telemetry.report import report_from_run
from rlhf.telemetry.runs import RunView
from tests.support.conversations import demonstrations, preferences, write_rows
from tests.support.runtime import ActorPool

STEPS, SHORT, BETA = 12, 4, 0.2
SAME = 2e-5
"""Largest difference of a loss between ZeRO stages or rank counts: float32 sums in another order."""
LOG_2 = math.log(2)


@pytest.fixture(scope="module", autouse=True)
def ranks(actor_pool: ActorPool) -> Iterator[None]:
    """Two ranks and one, which train one run after the other."""
    with actor_pool.lent_to(training):
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("rows")
    return {
        "sft": write_rows(folder / "demonstrations.jsonl", demonstrations(16)),
        "train": write_rows(folder / "preferences.jsonl", preferences(24)),
        "eval": write_rows(folder / "held_out.jsonl", preferences(9, seed=9, first=100)),
    }


def _placement(ranks: int) -> dict[str, Any]:
    """Patient: these tests are about numbers, and a busy machine may start processes slowly."""
    return {"num_ranks": ranks, "start_timeout_seconds": 500, "collective_timeout_seconds": 500}


def train_dpo(
    start: Path, files: dict[str, str], run_dir: Path, zero: int, ranks: int, **changes: Any
) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "run_dir": str(run_dir),
        "model": {"name": str(start)},
        "data": {"train": files["train"], "evaluation": files["eval"], "max_sequence_tokens": 256},
        "lora": {"r": 4, "alpha": 8},
        "optim": {"learning_rate": 2e-3, "schedule": "constant"},
        "batch": {"minibatch_pairs": 4, "microbatch_pairs_per_gpu": 2},
        "beta": BETA,
        "weight_by_prompt": False,  # every step's loss is then a plain mean over its pairs
        "max_steps": SHORT,
        "num_epochs": 10,
        "eval_every_steps": 4,
        "telemetry": {"tensorboard": False},
        "engine": {"zero_stage": zero},
        "placement": _placement(ranks),
    }
    return run_dpo(build_config(DpoConfig, tree | changes, source="test"))


@pytest.fixture(scope="module")
def sft_run(tiny_model_dir: Path, files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("sft") / "run"
    tree = {
        "run_dir": str(run_dir),
        "model": {"name": str(tiny_model_dir)},
        "data": {"train": files["sft"], "eval_fraction": 0.0, "max_sequence_tokens": 256},
        "lora": {"r": 4, "alpha": 8},
        "optim": {"learning_rate": 5e-3},
        "batch": {"minibatch_sequences": 4, "microbatch_sequences_per_gpu": 2},
        "max_steps": 3,
        "telemetry": {"tensorboard": False},
        "engine": {"zero_stage": 2},
        "placement": _placement(2),
    }
    run_sft(build_config(SftConfig, tree, source="test"))
    return run_dir


@pytest.fixture(scope="module")
def dpo_run(
    sft_run: Path, tiny_model_dir: Path, files: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Two ranks, ZeRO-2, from the SFT run's adapter."""
    run_dir = tmp_path_factory.mktemp("dpo") / "run"
    before = {path: file_sha256(path) for path in (*tiny_model_dir.iterdir(), *(sft_run / "adapter").iterdir())}
    found = train_dpo(sft_run, files, run_dir, 2, 2, max_steps=STEPS)
    assert {path: file_sha256(path) for path in before} == before
    return {"run_dir": run_dir, **found}


def log_probs(model: Any, rows: list[dict[str, Any]]) -> Tensor:
    """(2, rows): of chosen and rejected responses, one sequence at a time, by the library alone."""
    found = []
    for key in ("chosen_ids", "rejected_ids"):
        for row in rows:
            ids = torch.tensor([row[key]])
            with torch.no_grad():
                logs = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
            found.append(logs.gather(1, ids[0, 1:, None])[row["num_prompt_tokens"] - 1 :].sum())
    return torch.stack(found).view(2, -1)


def held_out_rows(files: dict[str, str], base: Path) -> list[dict[str, Any]]:
    chat, config = chat_format(AutoTokenizer.from_pretrained(base)), DpoConfig.model_fields["data"].annotation
    data = config.model_validate({"train": files["train"], "max_sequence_tokens": 256})
    keys = {"use_margins": False, "weight_by_prompt": False, "prompt_length": True}
    return encode_preferences(load_preferences(files["eval"]), chat, data, **keys)[0]


def policy(base: Path, adapter: Path) -> Any:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)


def test_policy_and_reference_start_equal_and_part(dpo_run: dict[str, Any]) -> None:
    assert dpo_run["engine"] == "DeepSpeedEngine"
    rows = [row for row in read_metrics(dpo_run["run_dir"], "dpo") if "loss" in row]
    first, last = rows[0], rows[-3:]
    assert dpo_run["losses"][0] == pytest.approx(LOG_2, abs=1e-6) and len(rows) == STEPS
    assert (first["reward_margin"], first["reward_chosen"], first["reward_rejected"]) == (0.0, 0.0, 0.0)
    start = dpo_run["evaluations"][0]
    assert start["step"] == 0 and start["loss"] == pytest.approx(LOG_2, abs=1e-6)
    assert start["reward_margin"] == start["reward_chosen"] == 0.0 and start["accuracy"] == 0.5
    assert sum(row["reward_margin"] for row in last) / 3 > 0.1
    assert sum(row["loss"] for row in last) / 3 < LOG_2 - 0.03
    assert sum(row["accuracy"] for row in last) / 3 > 0.6
    assert rows[-1]["num_tokens"] > rows[0]["num_tokens"] > 0


def test_the_reference_is_the_policy_that_training_started_from(
    dpo_run: dict[str, Any], sft_run: Path, files: dict[str, str], tiny_model_dir: Path
) -> None:
    """Implicit rewards of held-out pairs again, from the files alone: base as it was, both adapters, no TRL."""
    rows = held_out_rows(files, tiny_model_dir)
    start = log_probs(policy(tiny_model_dir, sft_run / "adapter"), rows)
    end = log_probs(policy(tiny_model_dir, dpo_run["run_dir"] / "adapter"), rows)
    chosen, rejected = BETA * (end - start)
    found = dpo_run["evaluations"][-1]
    assert found["step"] == STEPS
    assert found["reward_chosen"] == pytest.approx(float(chosen.mean()), abs=1e-4)
    assert found["reward_rejected"] == pytest.approx(float(rejected.mean()), abs=1e-4)
    votes, right = torch.tensor([row["probability"] for row in rows]), (chosen - rejected).sigmoid()
    assert found["loss"] == pytest.approx(
        float(-(votes * right.log() + (1 - votes) * (1 - right).log()).mean()), abs=1e-4
    )
    assert found["accuracy"] == pytest.approx(float((chosen > rejected)[votes != 0.5].double().mean()))
    assert found["vote_accuracy"] == pytest.approx(float(torch.where(chosen > rejected, votes, 1 - votes).mean()))
    assert dpo_run["implicit_reward"]["accuracy"] == pytest.approx(found["accuracy"])
    assert abs(float(chosen.mean() - rejected.mean())) > 1e-3, "something was learnt to compare"
    base = log_probs(AutoModelForCausalLM.from_pretrained(tiny_model_dir), rows)
    assert (base - start).abs().min() > 0.01, "another reference would have been noticed"


def test_it_leaves_a_policy_run(dpo_run: dict[str, Any], tiny_model_dir: Path) -> None:
    run_dir = dpo_run["run_dir"]
    source = resolve_model(str(run_dir))
    assert source.record is not None and (source.record.stage, source.adapter) == ("dpo", run_dir / "adapter")
    state, rest = adapters.read_adapter_file(run_dir / "adapter")
    assert not rest and sum(t.numel() for t in state.values()) == dpo_run["trainable_parameters"]
    assert not (run_dir / "adapter" / "ref").exists()
    view = RunView(run_dir)
    assert view.state == "finished" and (view.progress.step, view.progress.total) == (STEPS, STEPS)
    assert json.loads((run_dir / "config.json").read_text())["num_steps"] == STEPS
    report = report_from_run(run_dir)
    assert [card.label for card in report.cards] == ["Accuracy of implicit rewards", "Time"]
    assert len(report.plots["dpo"]) == 4 and list(report.seconds) == ["dpo"]
    assert dpo_run["rows"]["soft_labels"] > 0 and dpo_run["implicit_reward"]["vote_ceiling"] < 1


@pytest.mark.parametrize(("zero", "ranks"), [(0, 1), (3, 2)])
def test_losses_do_not_depend_on_zero_stage_or_ranks(
    dpo_run: dict[str, Any], sft_run: Path, files: dict[str, str], tmp_path: Path, zero: int, ranks: int
) -> None:
    found = train_dpo(sft_run, files, tmp_path / "run", zero, ranks)
    worst = max(abs(a - b) for a, b in zip(found["losses"], dpo_run["losses"][:SHORT], strict=True))
    assert worst < SAME, (found["losses"], dpo_run["losses"])
    ours, theirs = found["evaluations"][-1], dpo_run["evaluations"][1]
    assert ours["step"] == theirs["step"] == SHORT
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=SAME)
    assert found["trainable_parameters"] == dpo_run["trainable_parameters"]
    assert found["parameters"] == dpo_run["parameters"]


def test_on_a_quantized_base_policy_and_reference_start_equal_too(
    tiny_model_dir: Path, files: dict[str, str], tmp_path: Path
) -> None:
    nf4 = {"name": str(tiny_model_dir), "quantization": "nf4"}
    found = train_dpo(tiny_model_dir, files, tmp_path / "run", 2, 1, model=nf4, loss_type="ipo")
    assert found["losses"][0] == pytest.approx((1 / (2 * BETA)) ** 2, rel=1e-6)
    assert found["evaluations"][0]["reward_margin"] == 0.0 != found["evaluations"][-1]["reward_margin"]


@pytest.mark.parametrize("zero", [2, 3])
def test_a_whole_model_learns_beside_a_copy_of_itself(
    zero: int, tiny_model_dir: Path, files: dict[str, str], tmp_path: Path
) -> None:
    optim = {"learning_rate": 2e-4, "schedule": "constant"}
    found = train_dpo(tiny_model_dir, files, tmp_path / "run", zero, 1, lora=None, optim=optim)
    assert found["losses"][0] == pytest.approx(LOG_2, abs=1e-6)
    assert found["trainable_parameters"] == found["parameters"]
    rows = held_out_rows(files, tiny_model_dir)
    start = log_probs(AutoModelForCausalLM.from_pretrained(tiny_model_dir), rows)
    end = log_probs(AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model"), rows)
    chosen, rejected = BETA * (end - start)
    assert found["evaluations"][-1]["reward_chosen"] == pytest.approx(float(chosen.mean()), abs=1e-4)
    assert found["evaluations"][-1]["reward_rejected"] == pytest.approx(float(rejected.mean()), abs=1e-4)


def test_a_whole_model_cut_after_a_step_finds_its_reference_again(
    tiny_model_dir: Path, files: dict[str, str], tmp_path: Path
) -> None:
    """The commit holds the policy as it was then; the reference has to come from the start, not from there."""
    changes = {"lora": None, "optim": {"learning_rate": 2e-4}, "checkpoint": {"every": 1, "keep_last": 100}}
    whole = train_dpo(tiny_model_dir, files, tmp_path / "whole", 2, 2, **changes)
    commit = tmp_path / "whole" / "checkpoints" / "step-00000002"
    shutil.copytree(commit, tmp_path / "cut" / "checkpoints" / commit.name)
    shutil.copy(tmp_path / "whole" / "metrics.jsonl", tmp_path / "cut")
    again = train_dpo(tiny_model_dir, files, tmp_path / "cut", 2, 2, **changes)
    assert again["losses"] == whole["losses"] and again["evaluations"] == whole["evaluations"]
    models = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "cut")]
    assert file_sha256(models[0]) == file_sha256(models[1])
