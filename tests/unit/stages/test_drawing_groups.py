"""Models share workers only where these can take each other's adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest

from rlhf.config import ModelConfig
from rlhf.models import adapters
from rlhf.models.source import resolve_model
from rlhf.models.tokenizer import load_chat
from rlhf.stages.drawing import _groups
from tests.support.runs import write_run

LORA = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def groups_of(*names: Path) -> list[list[int]]:
    models = [ModelConfig(name=str(name)) for name in names]
    sources = [resolve_model(model.name) for model in models]
    return _groups(models, sources, [load_chat(*each)[1] for each in zip(sources, models, strict=True)])


def with_config(run: Path, base: Path, config: Any) -> Path:
    state, _ = adapters.read_adapter_file(write_run(run, base) / "adapter")
    adapters.save_adapter_file(run / "adapter", config, str(base), state)
    return run


@pytest.mark.parametrize(
    "other",
    [
        peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", use_rslora=True),
        peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
    ],
    ids=["scaled otherwise", "another alpha", "another method"],
)
def test_adapters_of_other_kinds_have_workers_of_their_own(other: Any, tiny_base: Path, tmp_path: Path) -> None:
    one, two = with_config(tmp_path / "one", tiny_base, LORA), with_config(tmp_path / "two", tiny_base, other)
    assert groups_of(one, two) == [[0], [1]]


def test_adapters_of_one_kind_share_workers(tiny_base: Path, tmp_path: Path) -> None:
    swapped = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["v_proj", "q_proj"], task_type="CAUSAL_LM")
    one, two = with_config(tmp_path / "one", tiny_base, LORA), with_config(tmp_path / "two", tiny_base, swapped)
    assert groups_of(one, two) == [[0, 1]]


def test_another_chat_format_has_workers_of_its_own(tiny_base: Path, tmp_path: Path) -> None:
    """Workers end responses where their format does."""
    plain, chatty = write_run(tmp_path / "a", tiny_base), write_run(tmp_path / "b", tiny_base, chat_style="auto")
    assert groups_of(plain, chatty) == [[0], [1]]


def test_a_bare_base_is_drawn_from_by_workers_of_an_adapter_on_it(tiny_base: Path, tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "a", tiny_base, chat_style="auto"), write_run(tmp_path / "b", tiny_base)
    assert groups_of(tiny_base, one, two) == [[0, 1], [2]]
    assert groups_of(tiny_base, two) == [[0], [1]], "the base ends responses where its own format does"
    assert groups_of(tiny_base, tiny_base) == [[0, 1]]
