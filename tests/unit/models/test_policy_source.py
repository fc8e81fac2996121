"""A policy answers, and an adapter is held on the weights that it was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf.config import ModelConfig
from rlhf.errors import CheckpointError, ConfigError
from rlhf.models import scorer
from rlhf.models.policy_source import as_trained, resolve_policy
from rlhf.models.source import ModelSource, resolve_model
from tests.support.runs import recorded_with, write_reward_run, write_run


def test_a_reward_run_is_no_policy(tiny_base: Path, tmp_path: Path) -> None:
    judge = write_reward_run(tmp_path / "reward", tiny_base, 0)
    with pytest.raises(ConfigError, match=r"^baseline='.*reward' is a reward run; a policy is wanted"):
        resolve_policy(str(judge), key="baseline")
    policy = write_run(tmp_path / "sft", tiny_base)
    assert resolve_policy(str(policy)) == resolve_model(str(policy))
    assert resolve_policy(str(tiny_base)).record is None


def test_quantization_is_the_run_s_where_it_was_left_open(tiny_base: Path, tmp_path: Path) -> None:
    plain = write_run(tmp_path / "plain", tiny_base)
    run = recorded_with(plain, tmp_path / "qlora", quantization="nf4")
    source, left_open = resolve_policy(str(run)), ModelConfig(name=str(run))
    assert as_trained(left_open, source).quantization == "nf4"
    same = ModelConfig(name=str(run), quantization="nf4")
    assert as_trained(same, source) == same
    assert as_trained(ModelConfig(name=str(plain)), resolve_policy(str(plain))).quantization == "none"


def test_double_quantization_is_the_run_s_too(tiny_base: Path, tmp_path: Path) -> None:
    plain = write_run(tmp_path / "plain", tiny_base)
    run = recorded_with(plain, tmp_path / "qlora", quantization="nf4", double_quantization=False)
    source = resolve_policy(str(run))
    for asked in ({}, {"quantization": "nf4"}):
        found = as_trained(ModelConfig.model_validate({"name": str(run), **asked}), source)
        assert (found.quantization, found.double_quantization) == ("nf4", False)
    with pytest.raises(
        ConfigError, match=r"^model\.double_quantization=true, .*with double_quantization=false, .*leave"
    ):
        as_trained(ModelConfig(name=str(run), double_quantization=True), source)
    idle = ModelConfig(name=str(plain), double_quantization=False)
    assert as_trained(idle, resolve_policy(str(plain))) == idle, "it is of nf4 alone"


def test_a_record_without_double_quantization_has_its_default(tiny_base: Path, tmp_path: Path) -> None:
    run = recorded_with(write_run(tmp_path / "plain", tiny_base), tmp_path / "run", quantization="nf4")
    record = json.loads((run / "run.json").read_text())
    del record["double_quantization"]
    (run / "run.json").write_text(json.dumps(record))
    assert as_trained(ModelConfig(name=str(run)), resolve_policy(str(run))).double_quantization
    for wrong in ("no", None, 1):
        (run / "run.json").write_text(json.dumps(record | {"double_quantization": wrong}))
        with pytest.raises(CheckpointError, match=r"double_quantization is .*, true or false is wanted"):
            resolve_policy(str(run))


def test_a_reward_model_is_held_as_it_was_trained(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reached(Exception): ...

    def build(source: ModelSource, config: ModelConfig, tokenizer: object) -> None:
        raise Reached(config.quantization, config.double_quantization)

    monkeypatch.setattr(scorer, "build_reward_model", build)
    run = write_reward_run(tmp_path / "plain", tiny_base, 0)
    run = recorded_with(run, tmp_path / "qlora", quantization="nf4", double_quantization=False)
    with pytest.raises(Reached, match=r"\('nf4', False\)"):
        scorer.load_reward_model(run)


@pytest.mark.parametrize(("trained", "asked"), [("nf4", "none"), ("nf4", "int8"), ("none", "nf4")])
def test_another_quantization_is_refused(trained: str, asked: str, tiny_base: Path, tmp_path: Path) -> None:
    run = recorded_with(write_run(tmp_path / "a", tiny_base), tmp_path / "run", quantization=trained)
    model = ModelConfig.model_validate({"name": str(run), "quantization": asked})
    with pytest.raises(ConfigError, match=rf"^baseline\.quantization={asked}, .*with quantization={trained}, .*leave"):
        as_trained(model, resolve_policy(str(run)), key="baseline")


def test_a_base_is_held_as_one_likes(tiny_base: Path) -> None:
    model = ModelConfig(name=str(tiny_base), quantization="nf4")
    assert as_trained(model, resolve_policy(str(tiny_base))) == model
