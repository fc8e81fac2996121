"""``rlhf ppo --profile``: a key of the config, of PPO's alone, that changes nothing about what a run is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from rlhf import cli
from rlhf.config import PpoConfig, SftConfig, build_config, config_hash
from rlhf.data.chat import ChatFormat
from rlhf.errors import ConfigError
from rlhf.models.source import ModelSource
from rlhf.stages.resume import identity_of

TREE: dict[str, Any] = {
    "run_dir": "r",
    "model": {"name": "m"},
    "prompts": "p",
    "scores": [{"kind": "function", "path": "a:b"}],
}
WORDS = ("run_dir=r", "model.name=m", "prompts=p", "scores=[{kind: function, path: 'a:b'}]")


def started_with(*words: str) -> PpoConfig:
    """The config that the stage is handed by a command line."""
    seen: list[PpoConfig] = []

    def stage(config: PpoConfig, **_: Any) -> dict[str, Any]:
        seen.append(config)
        raise ConfigError("far enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "_runner", lambda name: stage)
        assert cli.main(["ppo", *words]) == 2
    return seen[0]


def test_the_flag_and_overrides_go_together() -> None:
    found = started_with("--profile", *WORDS, "num_steps=7")
    assert found.telemetry.profile and found.num_steps == 7
    assert started_with(*WORDS, "seed=3", "--profile").telemetry.profile
    assert not started_with(*WORDS).telemetry.profile


def test_a_run_may_go_on_with_or_without_a_profile() -> None:
    plain, profiled = (
        build_config(PpoConfig, {**TREE, "telemetry": {"profile": p}}, source="t") for p in (False, True)
    )
    source = ModelSource("base", None, "base")
    chat = cast(ChatFormat, SimpleNamespace(fingerprint=lambda: ""))
    same = [identity_of(config, source=source, chat=chat, data=[]) for config in (plain, profiled)]
    assert same[0] == same[1] and config_hash(plain) != config_hash(profiled)


def test_other_stages_refuse_what_they_would_not_do() -> None:
    tree = {"run_dir": "r", "model": {"name": "m"}, "data": {"train": "t"}, "telemetry": {"profile": True}}
    with pytest.raises(ConfigError, match=r"telemetry\.profile"):
        build_config(SftConfig, tree, source="t")


def test_help_says_what_comes_out(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["ppo", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--profile" in text and "trace.json" in text and "telemetry.profile=true" in text
