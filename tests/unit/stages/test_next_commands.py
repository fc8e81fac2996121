"""What a stage names at its end can be given as it stands, but for the words in capitals, and goes on from its run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from rlhf import cli
from rlhf.config import STAGES, SftConfig, build_config, load_config
from rlhf.stages.next_commands import next_commands

ROOT = Path(__file__).parents[3]


def loaded(command: str) -> Any:
    """The config that such a command reads."""
    words = shlex.split(command)
    assert words[0] == "rlhf" and words[2] == "--config"
    return load_config(words[1], ROOT / words[3], words[4:])


def after(stage: str, **tree: Any) -> Any:
    """The config of the last command after a stage."""
    model = {"name": "runs/my sft"}
    config = build_config(STAGES[stage], {"run_dir": f"runs/{stage}", "model": model, **tree}, source="test")
    return loaded(next_commands(stage, config)[-1][0])


@pytest.mark.parametrize(("train", "prompts"), [
    ("rows.jsonl", "prompts=rows.jsonl"), (("a b.jsonl", "c.jsonl"), """'prompts=["a b.jsonl", "c.jsonl"]'"""),
])  # fmt: skip
def test_what_comes_after_sft_can_be_run(train: Any, prompts: str) -> None:
    tree = {"run_dir": "r", "model": {"name": "m"}, "data": {"train": train}}
    _, (command, _) = next_commands("sft", build_config(SftConfig, tree, source="test"))
    assert command.endswith(f"model.name=r {prompts}")
    words = shlex.split(command)
    assert load_config("sample", ROOT / words[3], words[4:]).prompts == train


def test_after_a_reward_model_ppo_trains_the_model_that_it_started_from() -> None:
    found = after("reward", data={"train": "store:mine"})
    assert found.model.name == "runs/my sft" and found.prompts == "PROMPTS.jsonl"
    assert [source.run for source in found.scores] == ["runs/reward"]


def test_after_dpo_a_judge_has_to_be_named() -> None:
    found = after("dpo", data={"train": "store:mine"})
    assert (found.model.name, found.baseline, found.judge.run) == ("runs/dpo", "runs/my sft", "REWARD_RUN")
    config = build_config(STAGES["dpo"], {"run_dir": "r", "model": {"name": "m"}, "data": {"train": "p"}}, source="t")
    assert "REWARD_RUN: a reward run" in next_commands("dpo", config)[-1][1]


@pytest.mark.parametrize("score", [
    {"kind": "reward_model", "run": "runs/r w"},
    {"kind": "function", "path": "a.b:c", "weight": -1.0, "rows_per_call": 1},
    {"kind": "http", "url": "https://rewards.example.org/s", "token": "env:REWARD_TOKEN", "on_error": "drop"},
])  # fmt: skip
def test_after_ppo_the_judge_is_one_that_is_there(score: dict[str, Any]) -> None:
    found = after("ppo", prompts="p.jsonl", scores=[{"kind": "reward_model", "run": "no", "weight": 0.0}, score])
    told = found.judge.model_dump(exclude_unset=True) | {"on_error": "fail"}
    wanted = score | {"on_error": "fail"}
    assert {key: str(told[key]) for key in wanted} == {key: str(value) for key, value in wanted.items()}
    assert (found.model.name, found.baseline, found.prompts) == ("runs/ppo", "runs/my sft", "HELDOUT.jsonl")


def test_the_commands_can_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_runner", lambda name: lambda config, progress: {"stage": name})
    words = ["sample", "model.name=m", "prompts=p", f"run_dir={tmp_path / 'run'}"]
    assert cli.main(words) == 0 and "rlhf prefs import PROJECT" in capsys.readouterr().out
    assert cli.main([*words, "--no-next"]) == 0
    assert "prefs import" not in capsys.readouterr().out
