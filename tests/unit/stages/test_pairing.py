"""Tokenizers, adapters and reward models that do not belong together are refused before anything is started."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import CheckpointError, ConfigError, RlhfError
from rlhf.stages import ppo_run
from rlhf.stages.ppo import run_ppo
from tests.support.ppo import tiny_config
from tests.support.runs import write_run
from tests.support.tiny import build_model, build_tokenizer, copy_with


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("pairing") / "base", num_hidden_layers=1)


def swap_tokenizer(run: Path) -> None:
    build_tokenizer(vocab_size=290).save_pretrained(run / "tokenizer")


def other_base(run: Path) -> None:
    path = run / "adapter" / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "base_model_name_or_path": "somebody/else"}))


def without_head(run: Path) -> None:
    (run / "adapter" / "reward.json").unlink()


CASES: list[tuple[str, Any, type[RlhfError], str]] = [
    ("sft", swap_tokenizer, CheckpointError, "is not the tokenizer that run"),
    ("sft", other_base, CheckpointError, "belongs to the base 'somebody/else'"),
    ("reward", swap_tokenizer, CheckpointError, "is not the tokenizer that run"),
    ("reward", other_base, CheckpointError, "belongs to the base 'somebody/else'"),
    ("reward", without_head, CheckpointError, r"reward\.json is not readable"),
]


def refused(tree: dict[str, Any], base: Path, tmp_path: Path, error: type[RlhfError], reason: str) -> None:
    config = tiny_config(base, tmp_path / "ppo", **tree)
    started = time.perf_counter()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(error, match=reason):
        patch.setattr(ppo_run, "ray_runtime", too_late)  # other tests of the session may have a runtime of their own
        run_ppo(config)
    assert time.perf_counter() - started < 10


def too_late(*_: Any, **__: Any) -> None:
    raise AssertionError("Ray would have been started")


@pytest.mark.parametrize(("stage", "damage", "error", "reason"), CASES)
def test_what_does_not_belong_together_is_refused_before_step_0(
    stage: str, damage: Any, error: type[RlhfError], reason: str, base: Path, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", base, stage)
    damage(run)
    reward = [{"kind": "reward_model", "run": str(run)}]
    refused({"scores": reward} if stage == "reward" else {"model.name": str(run)}, base, tmp_path, error, reason)


def test_an_sft_run_is_no_reward_model(base: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", base)
    scores = [{"kind": "reward_model", "run": str(run)}]
    refused({"scores": scores}, base, tmp_path, CheckpointError, "not a finished reward run")


def test_a_tokenizer_with_more_tokens_than_the_model_embeds(base: Path, tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([f"<extra{i}>" for i in range(100)])
    directory = copy_with(base, tmp_path / "m", tokenizer)
    refused({"model.name": str(directory)}, base, tmp_path, ConfigError, "do not belong together")
