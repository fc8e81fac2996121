"""Overrides on the command line: what they change, and what they say where they cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.config import load_config
from rlhf.errors import ConfigError
from tests.unit.config.test_load import PPO, changed, write


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("optim.learning_rate=1e-4", "optim.learning_rate", 1e-4),
        ("optim.learning_rate=2E-5", "optim.learning_rate", 2e-5),
        ("kl.target=6", "kl.target", 6.0),
        ("kl.target=", "kl.target", None),
        ("kl.target=null", "kl.target", None),
        ("prompts=[a.jsonl, b.jsonl]", "prompts", ("a.jsonl", "b.jsonl")),
        ("advantage.whiten=false", "advantage.whiten", False),
        ("model.name=runs/a=b", "model.name", "runs/a=b"),
        ("model.name=e5", "model.name", "e5"),
        ("lora.target_modules=[q_proj,v_proj]", "lora.target_modules", ("q_proj", "v_proj")),
        ("lora={r: 4, alpha: 8}", "lora.r", 4),
        ("scores=[{kind: function, path: 'x:y', weight: 0.5}]", "scores.0.weight", 0.5),
        ("scores.0.weight=2", "scores.0.weight", 2.0),
        ("scores.0.path=7:8", "scores.0.path", "7:8"),
        ("scores.0={kind: reward_model, run: r}", "scores.0.run", "r"),
        ("prompts=*.jsonl", "prompts", "*.jsonl"),
        ("prompts=data/*.jsonl", "prompts", "data/*.jsonl"),
        ("prompts=@new", "prompts", "@new"),
        ("prompts=a #1.jsonl", "prompts", "a #1.jsonl"),
        ("prompts='*.jsonl'", "prompts", "*.jsonl"),
        ("prompts=12", "prompts", "12"),
        ("model.revision=12345678", "model.revision", "12345678"),
        ("model.revision=0123e4", "model.revision", "0123e4"),
        ("model.revision=null", "model.revision", None),
        ("model.revision=", "model.revision", None),
        ("run_dir=2026-01-02", "run_dir", "2026-01-02"),
        ("run_dir=no", "run_dir", "no"),
    ],
)
def test_overrides(text: str, key: str, value: Any, tmp_path: Path) -> None:
    found: Any = load_config("ppo", write(tmp_path, PPO), [text])
    for part in key.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["seed", "=3", "seed.x.y=1", "run_dir.x=1", "kl.coef={a: [}"])
def test_overrides_that_cannot_be(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("ppo", write(tmp_path, changed(PPO, "seed", 1)), [text])
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("scores.1.weight=2", r"'scores' has 1 entry \(0\), there is no 1"),
        ("scores.x.weight=2", "'scores' is a list: name one of its entries by number, scores.0"),
        ("scores.-1.weight=2", "'scores' is a list"),
        ("scores.7=2", "there is no 7"),
        ("scores.0.wait=2", "unknown key 'scores.0.wait'; did you mean 'scores.weight'"),
        ("ptx.train.0=a.jsonl", "no list 'ptx.train' is given.*ptx.train="),
        ("socres.0.weight=2", "unknown key 'socres'; did you mean 'scores'"),
        ("prompts=[a.jsonl", "the value is not YAML.*in quotes"),
    ],
)
def test_entries_of_lists_that_are_not_there(text: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"(?s){named}"):
        load_config("ppo", write(tmp_path, PPO), [text])


def test_the_other_word_of_a_key_wants_text_too(tmp_path: Path) -> None:
    tree = {"run_dir": "r", "model": {"name": "m"}}
    assert load_config("reward", write(tmp_path, tree), ["data.preferences=*.jsonl"]).data.train == "*.jsonl"
    assert load_config("reward", write(tmp_path, tree), ["data.preferences=12"]).data.train == "12"


def test_both_words_of_a_key_are_one_key(tmp_path: Path) -> None:
    tree = {"run_dir": "r", "model": {"name": "m"}, "data": {"preferences": [{"files": "a"}, {"files": "b"}]}}

    def train(*overrides: str) -> Any:
        return load_config("reward", write(tmp_path, tree), overrides).data.train

    assert train("data.train=b") == "b" and train("data={preferences: c}", "data.train=d") == "d"
    assert train("data.preferences=b") == "b" and train("data.train=x", "data.preferences=b") == "b"
    assert [one.weight for one in train("data.preferences.0.weight=0.5")] == [0.5, 1.0]
    with pytest.raises(ConfigError, match=r"data\.preferences is another word for data\.train: give one of the two"):
        train("data={preferences: c, train: d}")
    with pytest.raises(ConfigError, match=r"unknown key 'data\.train\.0\.wieght'; did you mean 'data\.train\.weight'"):
        train("data.preferences=[{files: a, wieght: 1}]")


def test_later_overrides_win_and_the_file_is_untouched(tmp_path: Path) -> None:
    path = write(tmp_path, PPO)
    before = path.read_bytes()
    assert load_config("ppo", path, ["seed=1", "seed=2"]).seed == 2
    assert path.read_bytes() == before
