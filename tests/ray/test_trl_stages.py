"""SFT and reward training as they really run: Ray actors, gloo, DeepSpeed at every ZeRO stage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.config import DataConfig, RewardConfig, SftConfig, build_config
from rlhf.data.chat import ChatFormat, chat_format
from rlhf.data.loading import load_demonstrations
from rlhf.data.schema import Message
from rlhf.models import adapters
from rlhf.models.scorer import load_reward_model
from rlhf.stages import training
from rlhf.stages.encode import encode_demonstrations
from rlhf.stages.reward import run_reward
from rlhf.stages.sft import run_sft
from rlhf.telemetry.metrics import read_metrics
from tests.support.conversations import demonstrations, preferences, write_rows
from tests.support.pickles import TEXT_OF_RUNS, careless, open_run, plant_everywhere
from tests.support.runtime import ActorPool

GOLDEN = Path(__file__).parents[1] / "golden"
STEPS, SHORT = 20, 8
SAME = 2e-5
"""Largest difference of a loss of about 5 nats between ZeRO stages or rank counts: float32 sums in another order."""
PORTABLE = 2e-3
"""The same between machines: other instruction sets, carried through 20 steps."""


@pytest.fixture(scope="module", autouse=True)
def ranks(actor_pool: ActorPool) -> Iterator[None]:
    """Two ranks and one, which train one run after the other."""
    with actor_pool.lent_to(training):
        yield


def golden_files(folder: Path) -> dict[str, str]:
    """Rows of both stages; the trajectories depend on them."""
    return {
        "sft": write_rows(folder / "demonstrations.jsonl", demonstrations(24)),
        "sft_eval": write_rows(folder / "held_out.jsonl", demonstrations(5, seed=9)),
        "reward": write_rows(folder / "preferences.jsonl", preferences(24)),
        "reward_eval": write_rows(folder / "held_out_pairs.jsonl", preferences(9, seed=9, first=100)),
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return golden_files(tmp_path_factory.mktemp("rows"))


def _tree(stage: str, base: Path, files: dict[str, str], run_dir: Path, **changes: Any) -> dict[str, Any]:
    unit = "sequences" if stage == "sft" else "pairs"
    tree: dict[str, Any] = {
        "run_dir": str(run_dir),
        "model": {"name": str(base)},
        "data": {"train": files[stage], "evaluation": files[f"{stage}_eval"], "max_sequence_tokens": 256},
        "lora": {"r": 4, "alpha": 8},
        "optim": {"learning_rate": 1e-3, "schedule": "constant"},
        "batch": {f"minibatch_{unit}": 4, f"microbatch_{unit}_per_gpu": 1},
        "max_steps": SHORT,
        "num_epochs": 10,
        "eval_every_steps": 4,
        "telemetry": {"tensorboard": False},
    }
    return tree | changes


def _placement(ranks: int) -> dict[str, Any]:
    """Patient: these tests are about numbers, and a busy machine may start processes slowly."""
    return {"num_ranks": ranks, "start_timeout_seconds": 500, "collective_timeout_seconds": 500}


def train_sft(
    base: Path, files: dict[str, str], run_dir: Path, zero: int, ranks: int, **changes: Any
) -> dict[str, Any]:
    tree = _tree("sft", base, files, run_dir, **changes)
    tree |= {"engine": {"zero_stage": zero}, "placement": _placement(ranks)}
    return run_sft(build_config(SftConfig, tree, source="test"))


def train_reward(
    base: Path, files: dict[str, str], run_dir: Path, zero: int, ranks: int, **changes: Any
) -> dict[str, Any]:
    tree = _tree("reward", base, files, run_dir, **changes)
    tree |= {"engine": {"zero_stage": zero}, "placement": _placement(ranks)}
    return run_reward(build_config(RewardConfig, tree, source="test"))


@pytest.fixture(scope="module")
def sft_run(tiny_model_dir: Path, files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two ranks, ZeRO-0, 20 steps: what the others are compared with."""
    run_dir = tmp_path_factory.mktemp("sft") / "run"
    return {"run_dir": run_dir, **train_sft(tiny_model_dir, files, run_dir, 0, 2, max_steps=STEPS)}


@pytest.fixture(scope="module")
def reward_run(
    sft_run: dict[str, Any], files: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Two ranks, ZeRO-2, 20 steps, from the SFT run's adapter."""
    run_dir = tmp_path_factory.mktemp("reward") / "run"
    return {"run_dir": run_dir, **train_reward(sft_run["run_dir"], files, run_dir, 2, 2, max_steps=STEPS)}


def _chat(base: Path) -> ChatFormat:
    return chat_format(AutoTokenizer.from_pretrained(base))


def _check_golden(name: str, losses: list[float]) -> None:
    expected = json.loads((GOLDEN / name).read_text())["losses"]
    assert len(losses) == len(expected) == STEPS
    assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) < PORTABLE


def test_sft_follows_its_golden_trajectory(sft_run: dict[str, Any]) -> None:
    assert sft_run["engine"] == "DeepSpeedEngine"
    _check_golden("sft_20_steps.json", sft_run["losses"])
    assert sft_run["eval_loss"]["final"] < sft_run["eval_loss"]["first"] - 0.3


@pytest.mark.parametrize(("zero", "ranks"), [(1, 2), (2, 1), (3, 2)])
def test_sft_losses_do_not_depend_on_zero_stage_or_ranks(
    sft_run: dict[str, Any], tiny_model_dir: Path, files: dict[str, str], tmp_path: Path, zero: int, ranks: int
) -> None:
    found = train_sft(tiny_model_dir, files, tmp_path / "run", zero, ranks)
    assert (found["engine"], found["zero_stage"], found["num_ranks"]) == ("DeepSpeedEngine", zero, ranks)
    worst = max(abs(a - b) for a, b in zip(found["losses"], sft_run["losses"][:SHORT], strict=True))
    assert worst < SAME, (found["losses"], sft_run["losses"])
    ours, theirs = found["evaluations"], sft_run["evaluations"]
    assert [row["step"] for row in ours] == [0, 4, 8]
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(ours, theirs, strict=False)) < SAME
    assert found["trainable_parameters"] == sft_run["trainable_parameters"] > 0


def test_sft_leaves_a_run_that_peft_and_the_next_stage_can_read(sft_run: dict[str, Any], tiny_model_dir: Path) -> None:
    run_dir = sft_run["run_dir"]
    state, rest = adapters.read_adapter_file(run_dir / "adapter")
    assert not rest and sum(t.numel() for t in state.values()) == sft_run["trainable_parameters"]
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), run_dir / "adapter")
    live = {k: p for k, p in adapters.adapter_parameters(loaded, "default")}
    assert live.keys() == state.keys() and all(torch.equal(live[k], state[k]) for k in state)
    steps = [row["step"] for row in read_metrics(run_dir, "sft") if "loss" in row]
    assert steps == list(range(1, STEPS + 1))
    assert {"sft-0.log", "sft-1.log", "driver-0.log"} <= {p.name for p in (run_dir / "logs").iterdir()}


def test_early_stopping_restores_the_best_weights_under_zero_3(
    tiny_model_dir: Path, files: dict[str, str], tmp_path: Path
) -> None:
    """A learning rate that soon ruins the model: the weights that stay are those of the best evaluation."""
    optim = {"learning_rate": 0.15, "schedule": "constant", "max_grad_norm": 100.0}
    changes = {"optim": optim, "early_stopping_patience": 2, "eval_every_steps": 1, "max_steps": 30, "packing": True}
    found = train_sft(tiny_model_dir, files, tmp_path / "run", 3, 2, **changes)
    losses = {row["step"]: row["loss"] for row in found["evaluations"]}
    assert found["stopped_early"] and found["num_steps"] < 30
    assert found["best_step"] == min(losses, key=lambda step: losses[step]) == found["num_steps"] - 2
    assert abs(found["eval_loss"]["final"] - losses[found["best_step"]]) < 1e-6
    assert losses[found["num_steps"]] > losses[found["best_step"]] + 0.01


def test_quantized_base_and_full_training(tiny_model_dir: Path, files: dict[str, str], tmp_path: Path) -> None:
    dora = {"r": 4, "alpha": 8, "use_dora": True}
    nf4 = {"name": str(tiny_model_dir), "quantization": "nf4"}
    quantized = train_sft(tiny_model_dir, files, tmp_path / "qlora", 2, 1, model=nf4, lora=dora)
    assert quantized["losses"][-1] < quantized["losses"][0]
    full = train_sft(tiny_model_dir, files, tmp_path / "full", 3, 1, lora=None)
    assert full["trainable_parameters"] == full["parameters"]
    # the saved model, read by the library alone, has the held-out loss that the run reports
    model, chat = AutoModelForCausalLM.from_pretrained(tmp_path / "full" / "model"), _chat(tiny_model_dir)
    rows, _ = encode_demonstrations(load_demonstrations(files["sft_eval"]), chat, DataConfig(train="x"))
    total, count = 0.0, 0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        count += int((labels != -100).sum())
    assert abs(total / count - full["eval_loss"]["final"]) < SAME


def test_reward_follows_its_golden_trajectory(reward_run: dict[str, Any]) -> None:
    assert reward_run["engine"] == "DeepSpeedEngine"
    _check_golden("reward_20_steps.json", reward_run["losses"])
    figures = reward_run["reward_model"]
    assert figures["ci_low"] <= figures["accuracy"] <= figures["ci_high"]
    losses = reward_run["losses"]  # the few held-out pairs say little about learning; the losses do
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.15


def test_reward_losses_and_scores_do_not_depend_on_zero_stage_or_ranks(
    reward_run: dict[str, Any], sft_run: dict[str, Any], files: dict[str, str], tmp_path: Path
) -> None:
    found = train_reward(sft_run["run_dir"], files, tmp_path / "run", 3, 1, max_steps=STEPS)
    worst = max(abs(a - b) for a, b in zip(found["losses"], reward_run["losses"], strict=True))
    assert worst < 5 * SAME
    assert found["normalization"]["mean"] == pytest.approx(reward_run["normalization"]["mean"], abs=1e-3)


def test_reward_reload_is_normalized_and_keeps_its_head(reward_run: dict[str, Any], files: dict[str, str]) -> None:
    """In this process, which has not trained: the training samples get mean 0 and deviation 1."""
    state, rest = adapters.read_adapter_file(reward_run["run_dir"] / "adapter")
    assert rest["score.weight"].shape == (1, 64) and state
    scorer = load_reward_model(reward_run["run_dir"])
    rows = [json.loads(line) for line in Path(files["reward"]).read_text().splitlines()]
    texts = {(row["prompt"][0]["content"], row[key]) for row in rows for key in ("chosen", "rejected")}
    scores = torch.tensor(scorer.score_texts([((Message("user", p),), r) for p, r in sorted(texts)]))
    assert abs(float(scores.mean())) < 1e-4 and abs(float(scores.std(unbiased=False)) - 1) < 1e-4
    one_by_one = [scorer.score_texts([((Message("user", p),), r)])[0] for p, r in sorted(texts)[:3]]
    assert torch.allclose(scores[:3], torch.tensor(one_by_one), atol=1e-4)


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_a_pickle_planted_in_a_finished_run_never_runs(
    stage: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run = request.getfixturevalue(f"{stage}_run")["run_dir"]
    outcomes = plant_everywhere(run, tmp_path, open_run, kinds=("torch",))
    assert careless(outcomes, TEXT_OF_RUNS) == []
