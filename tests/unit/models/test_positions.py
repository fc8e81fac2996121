"""Limits beyond the positions of a base are refused before any worker starts, in every stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BloomConfig, GPT2Config, LlamaConfig, PretrainedConfig

from rlhf.config import (
    EvaluateConfig,
    ModelConfig,
    PpoConfig,
    RewardConfig,
    SampleConfig,
    SftConfig,
    build_config,
)
from rlhf.errors import ConfigError
from rlhf.models.positions import check_positions
from rlhf.models.source import ModelSource, resolve_model
from rlhf.models.tokenizer import load_chat
from rlhf.stages import reward, sft
from rlhf.stages.critic_ranks import critic_origin
from rlhf.stages.evaluate import run_evaluate
from rlhf.stages.lengths import check_lengths
from rlhf.stages.reward_models import reward_models_of
from rlhf.stages.sample import run_sample
from tests.support.ppo import tiny_config
from tests.support.runs import write_reward_run
from tests.support.tiny import build_model

LLAMA = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 50}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 12, "rope_theta": 1e4}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 6, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "rope_theta": 1e4,
}  # fmt: skip


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with 24 positions."""
    return build_model(tmp_path_factory.mktemp("short") / "base", max_position_embeddings=24)


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(n_positions=24),
        LlamaConfig(max_position_embeddings=24, **LLAMA),
        LlamaConfig(max_position_embeddings=6, rope_parameters=LINEAR, **LLAMA),
        LlamaConfig(max_position_embeddings=12, rope_parameters=YARN, **LLAMA),
        LlamaConfig(max_position_embeddings=24, rope_parameters=YARN, **LLAMA),
        LlamaConfig(max_position_embeddings=24, rope_parameters=LLAMA3, **LLAMA),
    ],
    ids=["gpt2", "llama", "linear", "yarn", "yarn-named", "llama3"],
)
def test_as_many_as_the_config_says(config: PretrainedConfig, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    source, model = ModelSource(str(tmp_path), None, str(tmp_path)), ModelConfig(name=str(tmp_path))
    check_positions(source, model, {"a.prompt": 14, "a.response": 10})
    with pytest.raises(ConfigError, match=r"a\.prompt=14 \+ a\.response=11 = 25 must be at most 24, .*set less, or"):
        check_positions(source, model, {"a.prompt": 14, "a.response": 11})
    with pytest.raises(ConfigError, match=r"^b\.tokens=25 must be at most 24, the positions of"):
        check_positions(source, model, {"b.tokens": 25})


def test_a_model_without_a_limit_has_none(tmp_path: Path) -> None:
    BloomConfig().save_pretrained(tmp_path)
    check_positions(ModelSource(str(tmp_path), None, str(tmp_path)), ModelConfig(name=str(tmp_path)), {"a": 10**9})


def opens_sft(base: Path, length: int) -> None:
    tree = {"run_dir": "x", "model": {"name": str(base)}, "data": {"train": "x", "max_sequence_tokens": length}}
    sft.open_model(build_config(SftConfig, tree, source="test"))


def opens_reward(base: Path, length: int) -> None:
    tree = {"run_dir": "x", "model": {"name": str(base)}, "data": {"train": "x", "max_sequence_tokens": length}}
    reward.open_model(build_config(RewardConfig, tree, source="test"))


@pytest.mark.parametrize("opens", [opens_sft, opens_reward])
def test_training_rows(opens: Callable[[Path, int], None], short: Path) -> None:
    opens(short, 24)
    with pytest.raises(ConfigError, match=r"data\.max_sequence_tokens=25 must be at most 24"):
        opens(short, 25)


def test_sampling_and_evaluation(short: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Ray is asked for: ``open_policy`` serves both stages, with both models of an evaluation."""
    for module in ("drawing", "evaluate"):
        monkeypatch.setattr(f"rlhf.stages.{module}.ray_runtime", lambda *_, **__: pytest.fail("workers were to start"))
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "a"}) + "\n")
    tree = {
        "run_dir": str(tmp_path / "run"),
        "model": {"name": str(short)},
        "prompts": str(tmp_path / "p.jsonl"),
        "sampling": {"max_prompt_tokens": 20, "max_response_tokens": 5},
    }
    judged = {"baseline": str(tiny_base), "judge": {"kind": "function", "path": "tests.support.scores:count_e"}}
    swapped = {**judged, "baseline": str(short), "model": {"name": str(tiny_base)}}
    runs = (
        (run_sample, SampleConfig, {}),
        (run_evaluate, EvaluateConfig, judged),
        (run_evaluate, EvaluateConfig, swapped),
    )
    for run, section, more in runs:
        config = build_config(section, {**tree, **more}, source="test")
        with pytest.raises(ConfigError, match=r"max_prompt_tokens=20 \+ sampling\.max_response_tokens=5 = 25"):
            run(config)


def ppo_of(base: Path, folder: Path, response: int, **changes: Any) -> PpoConfig:
    lengths = {"rollout.max_prompt_tokens": 20, "rollout.max_response_tokens": response}
    return tiny_config(base, folder / "run", **lengths, **changes)


def test_rollouts_and_demonstrations_of_ppo(short: Path, tmp_path: Path) -> None:
    source = resolve_model(str(short))
    check_lengths(ppo_of(short, tmp_path, 4), source)
    with pytest.raises(ConfigError, match=r"rollout\.max_prompt_tokens=20 \+ rollout\.max_response_tokens=5 = 25"):
        check_lengths(ppo_of(short, tmp_path, 5), source)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "a", "response": "b"}) + "\n")
    anchored = {"ptx": {"train": str(rows), "max_sequence_tokens": 30}}
    with pytest.raises(ConfigError, match=r"ptx\.max_sequence_tokens=30 must be at most 24"):
        check_lengths(ppo_of(short, tmp_path, 4, **anchored), source)


def test_who_else_reads_the_tokens_of_ppo(short: Path, tiny_base: Path, tmp_path: Path) -> None:
    """Reward models with workers of their own, and a critic with ranks of its own."""
    judge = write_reward_run(tmp_path / "judge", short, 0)
    source = resolve_model(str(tiny_base))
    chat = load_chat(source, ModelConfig(name=str(tiny_base), chat_style="plain"))[1]
    more = {"scores": [{"kind": "reward_model", "run": str(judge)}], "roles.critic": str(short)}
    fits, long = (ppo_of(tiny_base, tmp_path, response, **more) for response in (4, 5))
    assert reward_models_of(fits, source, chat).separate[0].reads_tokens
    assert critic_origin(fits, source) is not None
    for refused in (lambda: reward_models_of(long, source, chat), lambda: critic_origin(long, source)):
        with pytest.raises(ConfigError, match=rf"= 25 must be at most 24, the positions of {short}"):
            refused()
