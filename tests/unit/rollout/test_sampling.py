"""Inverse-CDF drawing against its definition, also where the vocabulary is searched in blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlhf.config import SamplingConfig
from rlhf.rollout.sampling import draw, pick, uniforms


@pytest.mark.parametrize("size", [5, 512, 513, 1000, 5000])
@pytest.mark.parametrize("share", [1.0, 0.01])
def test_pick_is_the_first_token_above_the_target(size: int, share: float) -> None:
    rng = np.random.default_rng(size)
    weights = rng.exponential(size=(64, size)) * (rng.random((64, size)) < share)
    weights[:, size // 2] += 0.1  # never all zero
    weights = weights.astype(np.float32)
    uniform = np.concatenate([[0.0, 1 - 2**-53], rng.random(62)])
    found = pick(torch.from_numpy(weights), torch.from_numpy(uniform)).numpy()
    cumulative = np.cumsum(weights.astype(np.float64), axis=1)
    for row, token in enumerate(found):
        target = uniform[row] * cumulative[row, -1]
        assert weights[row, token] > 0, "a token of weight 0 was drawn"
        below = cumulative[row, token] - weights[row, token]
        slack = 1e-12 * cumulative[row, -1]
        assert below - slack <= target <= cumulative[row, token] + slack


def test_frequencies_are_the_probabilities() -> None:
    logits = torch.randn(1, 700, generator=torch.Generator().manual_seed(0)) * 2
    count = 40_000
    token, logprob = draw(
        logits.expand(count, -1), torch.from_numpy(uniforms(3, count)), SamplingConfig(temperature=0.7), (4,)
    )
    scaled = logits[0].double() / 0.7
    scaled[4] = -torch.inf
    probs = scaled.softmax(0)
    seen = torch.bincount(token, minlength=700) / count
    assert seen[4] == 0
    assert float((seen - probs).abs().max()) < 5 * float((probs.max() / count).sqrt())
    assert torch.allclose(logprob.double(), probs[token].log(), atol=1e-5)


def test_a_longer_list_of_numbers_continues_a_shorter() -> None:
    assert np.array_equal(uniforms(9, 300)[:20], uniforms(9, 20))
    assert not np.array_equal(uniforms(9, 20), uniforms(10, 20))
