"""What an earlier release wrote down is known again: by its settings as they are read now, not by their spelling."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.config import EvaluateConfig, PpoConfig, RewardConfig, SftConfig, build_config
from rlhf.config.same import asks_for_the_same, holds_the_same, read_now

PPO: dict[str, Any] = {
    "run_dir": "runs/ppo",
    "model": {"name": "runs/sft"},
    "prompts": "p.jsonl",
    "scores": [{"kind": "reward_model", "run": "runs/reward"}],
}
KL = {"mode": "loss", "estimator": "k2"}
GRPO = {**PPO, "advantage": {"method": "grpo"}, "batch": {"responses_per_prompt": 4}, "kl": KL}


def ppo(tree: dict[str, Any] = PPO, **changes: Any) -> PpoConfig:
    config: PpoConfig = build_config(PpoConfig, {**tree, **changes}, source="test")
    return config


def recorded(tree: dict[str, Any] = PPO, **changes: Any) -> dict[str, Any]:
    """A resolved config as it stands in a file; changes by dotted key, None leaves the key out."""
    found = copy.deepcopy(ppo(tree).model_dump(mode="json"))
    for key, value in changes.items():
        *parents, last = key.split(".")
        node = found
        for parent in parents:
            node = node[parent]
        if value is None:
            del node[last]
        else:
            node[last] = value
    return found


@pytest.mark.parametrize(
    ("tree", "changes"),
    [
        (PPO, {}),
        (PPO, {"checkpoint.write_timeout_seconds": None, "loss.old_logprobs": None}),
        (PPO, {"placement.num_rollout_workers": 4, "telemetry.log_level": "DEBUG", "run_dir": "/elsewhere"}),
        (PPO, {"score.missing_eos_value": 1.0}),
        (PPO, {"kl.horizon": 1.0}),
        (PPO, {"model.attention": "sdpa"}),
        (GRPO, {"critic_learning_rate": 5e-6, "critic_max_grad_norm": 1.0, "roles.critic": "runs/reward"}),
        ({**PPO, "engine": {"zero_stage": 3}}, {"roles.recompute_feed_forward": True}),
    ],
    ids=["itself", "keys have come", "free", "eos kept", "no target", "attention", "no critic", "zero-3"],
)
def test_the_same(tree: dict[str, Any], changes: dict[str, Any], tmp_path: Path) -> None:
    """Keys that were not there yet, that compute nothing, and that had no effect and would be refused by now."""
    config = ppo(tree)
    written = recorded(tree, **changes)
    assert asks_for_the_same(written, config)
    (tmp_path / "config.json").write_text(json.dumps({"config_hash": "of another release", "config": written}))
    assert holds_the_same(tmp_path / "config.json", config)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"optim.learning_rate": 1e-3},
        {"score.missing_eos_value": 1.0, "score.missing_eos": "replace"},
        {"kl.horizon": 20_000.0, "kl.target": 5.0},
        {"model.attention": "eager"},
        {"scores": [{"kind": "reward_model", "run": "runs/other"}]},
        {"no_such_key": 1},
    ],
)
def test_another(changes: dict[str, Any]) -> None:
    assert not asks_for_the_same(recorded(**changes), ppo())


def test_a_key_that_has_come_counts_where_it_is_not_at_its_default() -> None:
    written = recorded(**{"batch.epochs": None})
    assert asks_for_the_same(written, ppo()) and not asks_for_the_same(written, ppo(batch={"epochs": 2}))


def test_what_would_be_refused_is_nothing() -> None:
    assert read_now(recorded(**{"seed": -1}), ppo()) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"config": 3}', '{"config": {"stage": "sft"}}'])
def test_files_that_hold_no_config(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    assert not holds_the_same(tmp_path / "config.json", ppo())
    assert not holds_the_same(tmp_path / "none.json", ppo())


def test_another_stage_is_another() -> None:
    tree = {"run_dir": "runs/sft", "model": {"name": "m"}, "data": {"train": "t.jsonl"}}
    assert not asks_for_the_same(recorded(), build_config(SftConfig, tree, source="test"))


def test_a_run_that_took_over_how_its_model_is_held_is_the_same(tmp_path: Path) -> None:
    """Who asks leaves it open, as the run's own command did; another value that is asked for is another run."""
    ran = ppo(model={"name": "runs/sft", "quantization": "nf4"}).model_dump(mode="json")
    description = tmp_path / "config.json"
    description.write_text(json.dumps({"config_hash": "its own", "config": ran}))
    assert holds_the_same(description, ppo()) and not holds_the_same(description, ppo(seed=1))
    assert not holds_the_same(description, ppo(model={"name": "runs/sft", "quantization": "none"}))
    del ran["model"]["quantization"]
    description.write_text(json.dumps({"config_hash": "its own", "config": ran}))
    assert holds_the_same(description, ppo()), "a release without that key wrote it"
    description.write_text(json.dumps({"config_hash": "its own", "config": ran | {"model": None}}))
    assert not holds_the_same(description, ppo())


PATIENCE = [
    ("http", {"url": "https://r.example.org/s"}, {"timeout_seconds": 90.0, "retries": 9, "backoff_seconds": 2.0}),
    ("http", {"url": "https://r.example.org/s"}, {"concurrent_requests": 8}),
    ("function", {"path": "a.b:c"}, {"timeout_seconds": 20.0, "start_timeout_seconds": 500.0}),
]


@pytest.mark.parametrize(("kind", "source", "patience"), PATIENCE)
def test_how_patiently_scores_are_asked_for_is_free(
    kind: str, source: dict[str, Any], patience: dict[str, Any], tmp_path: Path
) -> None:
    def scored(**more: Any) -> PpoConfig:
        return ppo(scores=[*PPO["scores"], {"kind": kind, **source, **more}])

    assert asks_for_the_same(scored().model_dump(mode="json"), scored(**patience))
    assert asks_for_the_same(scored(**patience).model_dump(mode="json"), scored())
    for other in ({"weight": 2.0}, {"on_error": "drop"}):
        assert not asks_for_the_same(scored().model_dump(mode="json"), scored(**patience, **other))
    tree = {"run_dir": "r", "model": {"name": "m"}, "baseline": "b", "prompts": "p", "judge": {"kind": kind, **source}}
    asked = build_config(EvaluateConfig, tree | {"judge": tree["judge"] | patience}, source="test")
    ran = build_config(EvaluateConfig, tree, source="test").model_dump(mode="json")
    assert asks_for_the_same(ran, asked)
    ran["judge"]["weight"] = 3.0
    assert not asks_for_the_same(ran, asked)


@pytest.mark.parametrize("train", ["store:x", [{"files": "a"}]])
def test_a_format_without_effect_is_refused_by_now_and_known_again(train: Any) -> None:
    tree: dict[str, Any] = {"run_dir": "r", "model": {"name": "m"}, "data": {"train": train}}
    asked = build_config(RewardConfig, tree, source="test")
    ran = asked.model_dump(mode="json")
    ran["data"]["format"] = "hh"
    assert asks_for_the_same(ran, asked)
    ran["data"]["evaluation"] = "b.jsonl"
    tree["data"] = ran["data"] | {"format": "auto"}
    assert not asks_for_the_same(ran, build_config(RewardConfig, tree, source="test"))
