"""A plan tells derived sizes and parameter counts without starting anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.config import STAGES, RewardModelSource, build_config
from rlhf.config.model import LoraConfig
from rlhf.errors import ConfigError, DataError
from rlhf.models import adapters
from rlhf.stages.evaluate import run_evaluate
from rlhf.stages.plan import _saved_adapter_text, plan_stage
from rlhf.stages.scoring import check_sources
from tests.support.conversations import demonstrations, preferences, write_rows


def _plan(stage: str, **tree: object) -> dict[str, str]:
    return dict(
        plan_stage(build_config(STAGES[stage], {"stage": stage, "run_dir": "runs/none", **tree}, source="test"))
    )


def test_plans_of_all_stages(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = {"name": str(tiny_model_dir)}
    rows = write_rows(tmp_path / "d.jsonl", demonstrations(40))
    pairs = write_rows(tmp_path / "p.jsonl", preferences(40))
    batch = {"minibatch_sequences": 8, "microbatch_sequences_per_gpu": 2}
    sft = _plan("sft", model=model, data={"train": rows}, batch=batch, placement={"num_ranks": 2}, lora={"r": 4})
    assert sft["minibatch"] == "8 rows = 2 per pass x 2 accumulated x 2 ranks"
    assert "none" not in sft["precision"] and sft["precision"].endswith(" here"), "a base that is not quantized"
    # r x (in + out) per projection: q, k, v, o, gate, up, down of two layers
    lora = 2 * 4 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + 3 * (64 + 128))
    assert sft["trained parameters"].startswith(f"{lora:,} of ")
    reward = _plan("reward", model=model, data={"train": pairs}, lora={"r": 4})
    assert reward["trained parameters"].startswith(f"{lora + 64:,} of ") and "reward.json" in reward["files"]
    function = {"kind": "function", "path": "tests.support.scores:count_e"}
    dpo = _plan("dpo", model=model, data={"train": pairs}, lora={"r": 4}, beta=0.2)
    assert dpo["trained parameters"].startswith(f"{lora:,} of ") and dpo["loss"] == "sigmoid, beta 0.2"
    assert dpo["reference"] == f"{tiny_model_dir}, as a frozen adapter" and "reward.json" not in dpo["files"]
    ppo = _plan("ppo", model=model, prompts=rows, scores=[function], placement={"num_rollout_workers": 2})
    assert ppo["rollouts per step"] == "32 = 32 prompts x 1 responses, by 2 rollout workers"
    assert ppo["optimizer steps"] == "400 = 100 steps x 4 epochs x 1 minibatches"
    assert _plan("sample", model=model, prompts=rows)["responses"] == "160 = 40 prompts x 4"
    evaluate = _plan("evaluate", model=model, baseline=str(tiny_model_dir), prompts=rows, judge=function, limit=7)
    assert evaluate["prompts"] == "7"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("lora", "text"),
    [
        ({}, "new lora, r=16, alpha=32 on all-linear"),
        ({"use_dora": True, "r": 4}, "new dora, r=4, alpha=32 on all-linear"),
        ({"method": "oft", "r": 8}, "new oft, block size 8 on all-linear"),
        ({"method": "ia3"}, "new ia3 on all-linear"),
    ],
)
def test_an_adapter_is_told_in_its_methods_words(
    lora: dict[str, Any], text: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "d.jsonl", demonstrations(40))
    plan_of = _plan("sft", model={"name": str(tiny_model_dir)}, data={"train": rows}, lora=lora)
    assert plan_of["adapter"] == text


@pytest.mark.parametrize(("method", "text"), [("lora", "lora, r=8, alpha=16"), ("ia3", "ia3"), ("vera", "vera, r=8")])
def test_a_saved_adapter_is_told_in_its_methods_words(method: str, text: str, tmp_path: Path) -> None:
    adapters.peft_config(LoraConfig(method=method, r=8, alpha=16)).save_pretrained(str(tmp_path))
    assert _saved_adapter_text(tmp_path) == text


def test_a_plan_tells_of_token_budgets_and_anchors(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "d.jsonl", demonstrations(40))
    found = _plan(
        "ppo",
        model={"name": str(tiny_model_dir)},
        prompts=rows,
        scores=[{"kind": "function", "path": "tests.support.scores:count_e"}],
        batch={"microbatch_tokens_per_gpu": 1024},
        ptx={"train": rows, "coef": 0.5},
    )
    assert found["minibatch"] == "32 sequences, in passes of up to 1024 tokens on 1 ranks"
    assert found["anchor"] == "8 of 40 demonstrations per optimizer step, coefficient 0.5"


def test_a_plan_names_the_runs_that_are_not_there_yet(tiny_model_dir: Path, tmp_path: Path) -> None:
    model, rows = {"name": str(tiny_model_dir)}, write_rows(tmp_path / "d.jsonl", demonstrations(40))
    function, reward = (
        {"kind": "function", "path": "tests.support.scores:count_e"},
        {"kind": "reward_model", "run": "runs/none"},
    )
    ppo = {"model": model, "prompts": rows, "roles": {"critic": "./no_critic"}, "placement": {"num_critic_ranks": 1}}
    found = _plan("ppo", scores=[function, reward], **ppo)["not there yet"]
    assert found == "scores[1].run=runs/none, roles.critic=./no_critic: train it first, or check the path"
    evaluate = {"model": model, "prompts": rows, "baseline": str(tiny_model_dir)}
    assert _plan("evaluate", judge=reward, **evaluate)["not there yet"].startswith("judge.run=runs/none: train it")
    assert "not there yet" not in _plan("evaluate", judge=function, **evaluate)
    with pytest.raises(ConfigError, match="baseline='runs/sft' does not exist"):
        _plan("evaluate", judge=function, **{**evaluate, "baseline": "runs/sft"})


@pytest.mark.parametrize(("changes", "key"), [
    ({"baseline": "runs/none"}, "baseline"), ({"judge": {"kind": "reward_model", "run": "runs/none"}}, "judge.run"),
])  # fmt: skip
def test_an_evaluation_names_the_key_of_what_is_missing(
    changes: dict[str, Any], key: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    tree = {"stage": "evaluate", "run_dir": str(tmp_path / "run"), "model": {"name": str(tiny_model_dir)},
            "prompts": write_rows(tmp_path / "d.jsonl", demonstrations(4)), "baseline": str(tiny_model_dir),
            "judge": {"kind": "function", "path": "tests.support.scores:count_e"}, **changes}  # fmt: skip
    with pytest.raises(ConfigError, match=rf"^{key}='runs/none' does not exist, .*: train it first"):
        run_evaluate(build_config(STAGES["evaluate"], tree, source="test"))


def test_a_training_names_the_reward_run_that_is_missing() -> None:
    source = RewardModelSource(run="runs/none")
    with pytest.raises(ConfigError, match=r"^scores\[1\]\.run='runs/none' does not exist"):
        check_sources({"scores[1]": source})


def test_a_plan_refuses_what_the_run_would_refuse(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "d.jsonl", demonstrations(60))
    with pytest.raises(DataError, match=r"longer than data\.max_sequence_tokens=8"):
        _plan("sft", model={"name": str(tiny_model_dir)}, data={"train": rows, "max_sequence_tokens": 8})
    with pytest.raises(ConfigError, match="annotator_weights needs rankings from the preference store"):
        _plan("reward", model={"name": str(tiny_model_dir)}, data={"train": rows}, annotator_weights=True)
