"""Steps from layer to layer draw what the model's own forward draws, and are not taken where it does more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.config import SamplingConfig
from rlhf.rollout.protocol import PromptTask
from rlhf.rollout.steps import LayerSteps
from rlhf.rollout.transformers_engine import TransformersGenerator
from tests.unit.rollout.test_transformers_engine import engine, tasks

LONG = SamplingConfig(max_response_tokens=140)
"""More than the cache has columns for at first."""


def steps_of(generator: TransformersGenerator) -> LayerSteps:
    found = generator._slot_words["steps"]
    assert isinstance(found, LayerSteps)
    return found


def told(generator: TransformersGenerator, some: list[PromptTask]) -> list[tuple[Any, ...]]:
    return [(one.response_ids, one.logprobs) for one in generator.generate(some, LONG)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_draws_to_the_last_bit_what_the_model_does(dtype: torch.dtype, tiny_base: Path) -> None:
    generator, some = engine(tiny_base, dtype=dtype), tasks(8)
    generator._stop_ids = ()
    steps = steps_of(generator)
    assert steps.serves is None
    calls = count(generator._causal)
    found = told(generator, some)
    assert steps.serves and calls == ["step"], "one step is compared, and the rest left out"
    assert max(len(tokens) for tokens, _ in found) == 140
    assert told(generator, some) == found and calls == ["step"]
    generator._slot_words["steps"] = None
    assert told(generator, some) == found and len(calls) == 140


def test_follows_adapter_and_base(tiny_base: Path) -> None:
    generator, some = engine(tiny_base), tasks(8)
    adapted = told(generator, some)
    generator.use_bare_base()
    bare = told(generator, some)
    assert steps_of(generator).serves and bare != adapted
    generator._slot_words["steps"] = None
    assert told(generator, some) == bare


def test_a_model_that_does_more_keeps_its_own_way(tiny_base: Path) -> None:
    generator, some = engine(tiny_base), tasks(8)
    model: Any = generator._causal.model
    forward = model.forward

    def more(*args: Any, **words: Any) -> Any:
        found = forward(*args, **words)
        found.last_hidden_state = 1.5 * found.last_hidden_state
        return found

    model.forward = more
    found = told(generator, some)
    assert steps_of(generator).serves is False
    generator._slot_words["steps"] = None
    assert told(generator, some) == found


def test_models_it_cannot_be(tiny_base: Path) -> None:
    causal = engine(tiny_base)._causal
    assert LayerSteps.of(causal) is not None
    causal.model.rotary_emb.rope_type = "dynamic"
    assert LayerSteps.of(causal) is None
    causal.model.rotary_emb.rope_type = "default"
    causal.model.embedding_norm = torch.nn.Identity()
    assert LayerSteps.of(causal) is None
    del causal.model.embedding_norm
    del causal.model.layers[1].halves
    assert LayerSteps.of(causal) is None


def count(causal: Any) -> list[str]:
    """Gets a word for every step that the model itself makes."""
    calls: list[str] = []
    forward = causal.forward

    def counted(*args: Any, **words: Any) -> Any:
        if words["input_ids"].shape[1] == 1:
            calls.append("step")
        return forward(*args, **words)

    causal.forward = counted
    return calls
