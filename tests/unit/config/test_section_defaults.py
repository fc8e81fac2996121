"""A section that is given in part keeps the stage's own defaults for the rest of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pydantic import BaseModel

from rlhf.config import STAGES, build_config
from rlhf.config.explain import sections_in

SCORE = {"kind": "function", "path": "a.b:c"}
MINIMAL: dict[str, dict[str, Any]] = {
    "sft": {"data": {"train": "a.jsonl"}},
    "reward": {"data": {"train": "a.jsonl"}},
    "dpo": {"data": {"train": "a.jsonl"}},
    "ppo": {"prompts": "p.jsonl", "scores": [SCORE]},
    "sample": {"prompts": "p.jsonl"},
    "evaluate": {"prompts": "p.jsonl", "baseline": "b", "judge": SCORE},
}


def build(stage: str, changes: dict[str, Any]) -> BaseModel:
    tree = copy.deepcopy(MINIMAL[stage]) | {"run_dir": "r", "model": {"name": "m"}}
    return build_config(STAGES[stage], tree | changes, source="test")


def sections(stage: str) -> list[tuple[str, BaseModel]]:
    """(name, default) of every section of a stage that a config may leave out."""
    return [(name, value) for name, value in build(stage, {}) if isinstance(value, BaseModel) and name not in (
        "model", "data", "judge")]  # fmt: skip


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_one_key_of_a_section_leaves_the_defaults_of_its_siblings(stage: str) -> None:
    """Every key of every section alone, at its default: the config is the one without the section."""
    plain = build(stage, {}).model_dump(mode="json")
    found = sections(stage)
    assert {"placement", "telemetry"} <= {name for name, _ in found}
    for name, section in found:
        for key, value in section.model_dump(mode="json").items():
            assert build(stage, {name: {key: value}}).model_dump(mode="json") == plain, f"{name}.{key}"


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_section_is_of_the_class_that_a_file_makes(stage: str) -> None:
    """Defaults stand in fields: a default that is another class than the annotated one, or has arguments, is none."""
    for name, section in sections(stage):
        (annotated,) = sections_in(STAGES[stage].model_fields[name].annotation)
        assert type(section) is annotated and section.model_dump() == annotated().model_dump(), name


def test_what_stages_have_of_their_own() -> None:
    ppo: Any = build("ppo", {"optim": {"warmup_fraction": 0.1}})
    assert (ppo.optim.learning_rate, ppo.optim.eps, ppo.optim.warmup_fraction) == (3e-6, 1e-5, 0.1)
    evaluate: Any = build("evaluate", {"sampling": {"max_response_tokens": 256}})
    assert (evaluate.sampling.temperature, evaluate.sampling.max_response_tokens) == (0.7, 256)
    sft: Any = build("sft", {"optim": {"warmup_fraction": 0.1}})
    assert (sft.optim.learning_rate, sft.optim.eps) == (1e-4, 1e-8)
