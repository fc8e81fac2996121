"""Draws by the compiled step of decoding: that it is taken, and how near bfloat16 stays to float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.config import SamplingConfig
from rlhf.models import blocks
from rlhf.models.kernels import decoding as kernels
from tests.unit.rollout.test_transformers_engine import engine, tasks


@pytest.mark.parametrize("adapted", [True, False], ids=["adapter", "bare"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_draw_takes_one_call_per_layer_and_step(
    dtype: torch.dtype, adapted: bool, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some, sampling = tasks(8), SamplingConfig(max_response_tokens=20)
    generator = engine(tiny_base, dtype=dtype, adapted=adapted)
    generator.generate(some[:1], sampling)  # makes its first step both ways
    seen: list[tuple[torch.dtype, ...]] = []
    one_call = kernels.decode

    def decode(layer: Any, *tensors: Any) -> Any:
        seen.append(tuple(tensor.dtype for tensor in tensors[:-1]))
        return one_call(layer, *tensors)

    monkeypatch.setattr(kernels, "decode", decode)
    drawn = generator.generate(some, sampling)
    steps = max(len(rollout.response_ids) for rollout in drawn) - 1
    assert seen == [(dtype,) * 5] * (2 * steps)


def test_bfloat16_s_log_probs_are_as_near_to_float32_s_as_by_the_model_s_own_layers(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each draw against the same weights in float32, which are told its tokens."""
    exact = engine(tiny_base, install=False)
    off = []
    for own in (False, True):
        generator = engine(tiny_base, dtype=torch.bfloat16)
        if own:
            monkeypatch.setattr(blocks, "_decode", lambda *_: None)  # float32 is asked for nothing but scores
            generator._slot_words["steps"] = None
        exact._model.load_state_dict({k: v.float() for k, v in generator._model.state_dict().items()})
        away = []
        for rollout in generator.generate(tasks(), SamplingConfig(max_response_tokens=20)):
            again = exact.score_tokens(list(rollout.prompt_ids), list(rollout.response_ids), 1.0)
            away += [abs(a - b) for a, b in zip(again, rollout.logprobs, strict=True)]
        off.append((float(np.mean(away)), max(away)))
    (mean, most), (own_mean, _) = off
    assert 0 < mean < 1.2 * own_mean < 0.05 and most < 0.3, off
