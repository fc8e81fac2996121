"""Which reward models are adapters on the policy's base: those that were trained on these very weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.config import PpoConfig
from rlhf.data.chat import chat_format
from rlhf.errors import ConfigError
from rlhf.models.source import resolve_model
from rlhf.models.tokenizer import load_tokenizer
from rlhf.workers.policy_start import RewardModels, place_reward_models
from tests.support.ppo import tiny_config
from tests.support.runs import recorded_with, write_reward_run


@pytest.fixture(scope="module")
def judge(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward run on the policy's base, without quantization."""
    return write_reward_run(tmp_path_factory.mktemp("judge") / "run", tiny_base, 0)


def place(base: Path, folder: Path, run: Path, **changes: Any) -> RewardModels:
    scores = [{"kind": "reward_model", "run": str(run)}]
    config: PpoConfig = tiny_config(base, folder / "run", scores=scores, **changes)
    source = resolve_model(config.model.name)
    return place_reward_models(config, source, chat_format(load_tokenizer(source, config.model), "plain"))


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_one_of_the_same_weights_shares_it(quantization: str, judge: Path, tiny_base: Path, tmp_path: Path) -> None:
    same = recorded_with(judge, tmp_path / "same", quantization=quantization)
    found = place(tiny_base, tmp_path, same, **{"model.quantization": quantization, "roles.layout": "shared"})
    assert found.shared_index == 0 and not found.separate


@pytest.mark.parametrize(
    ("recorded", "changes", "reason"),
    [
        ({}, {"model.quantization": "nf4"}, "trained with model.quantization=none, the policy has nf4"),
        (
            {"quantization": "nf4", "double_quantization": False},
            {"model.quantization": "nf4"},
            "trained with model.double_quantization=false, the policy has true",
        ),
        ({"quantization": "int8"}, {}, "trained with model.quantization=int8, the policy has none"),
        ({"revision": "v2"}, {}, r"another revision of the base \(v2, the policy on None\)"),
    ],
)
def test_one_of_other_weights_does_not(
    recorded: dict[str, Any], changes: dict[str, Any], reason: str, judge: Path, tiny_base: Path, tmp_path: Path
) -> None:
    other = recorded_with(judge, tmp_path / "other", **recorded)
    found = place(tiny_base, tmp_path, other, **changes)
    assert found.shared_index is None and found.fitting is None
    assert [(model.index, model.reads_tokens) for model in found.separate] == [(0, True)]
    with pytest.raises(ConfigError, match=rf"roles\.layout=shared.*{reason}; set roles\.layout=auto"):
        place(tiny_base, tmp_path, other, **changes, **{"roles.layout": "shared"})
