"""Drawing tokens by inverse CDF: one uniform number per (sample, token), whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf.config import SamplingConfig

CHUNK = 256
"""Tokens per block of the two-level search: only block sums and one block per row are ever in float64."""


def uniforms(seed: int, count: int) -> np.ndarray:
    """The random numbers of one sample, (count,) float64; a longer list only continues a shorter one."""
    return np.random.Generator(np.random.Philox(key=seed)).random(count)


def draw(
    logits: Tensor, uniform: Tensor, sampling: SamplingConfig, suppress: Sequence[int] | Tensor
) -> tuple[Tensor, Tensor]:
    """Draws one token per row.

    Args:
        logits: (rows, vocabulary), any float type.
        uniform: (rows,) float64 in [0, 1).
        suppress: ids that cannot be drawn; a long tensor on the same device saves the way there.

    Returns:
        Tokens, and their full-vocabulary log-probabilities at the temperature, both (rows,). A row whose logits are
        not finite gets a log-probability that is not finite either: the caller looks once, at the end.
    """
    logits = logits.float() / sampling.temperature
    if len(suppress):
        ids = suppress if isinstance(suppress, Tensor) else torch.tensor(list(suppress), device=logits.device)
        logits = logits.index_fill(1, ids, float("-inf"))
    logp = torch.log_softmax(logits, dim=-1)
    token = pick(_truncate(logp.exp(), sampling), uniform)
    return token, logp.gather(1, token[:, None]).squeeze(1)


def pick(weights: Tensor, uniform: Tensor) -> Tensor:
    """First token whose cumulative weight exceeds ``uniform`` times the total, (rows,) long.

    The sums are float64, so that the result does not depend on the order in which a device adds float32 numbers.
    """
    num_rows, size = weights.shape
    if size > 2 * CHUNK:
        filled = F.pad(weights, (0, -size % CHUNK)) if size % CHUNK else weights
        blocks = filled.reshape(num_rows, -1, CHUNK)  # (rows, blocks, tokens of a block)
        sums = blocks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
        target = uniform[:, None] * sums[:, -1:]
        block = torch.searchsorted(sums, target, right=True).clamp(max=blocks.shape[1] - 1)
        before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)), 0.0)
        inside = blocks[torch.arange(num_rows, device=weights.device), block.squeeze(1)]
        token = block * CHUNK + _first_above(inside, target - before)
    else:
        cumulative = weights.double().cumsum(dim=-1)
        token = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    return token.clamp(max=size - 1).squeeze(1)


def _first_above(weights: Tensor, target: Tensor) -> Tensor:
    """Index in a block; rounding at the block's end must not step onto a token of weight 0, so the last real one."""
    cumulative = weights.double().cumsum(dim=-1)
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous(), right=False)
    return torch.minimum(torch.searchsorted(cumulative, target, right=True), last)


def _truncate(probs: Tensor, sampling: SamplingConfig) -> Tensor:
    if sampling.top_k and sampling.top_k < probs.shape[-1]:
        floor = probs.topk(sampling.top_k, dim=-1).values[:, -1:]
        probs = probs.masked_fill(probs < floor, 0.0)
    if sampling.top_p < 1.0:
        ranked, index = probs.sort(dim=-1, descending=True)
        before = ranked.cumsum(dim=-1) - ranked
        total = probs.sum(dim=-1, keepdim=True)
        ranked = ranked.masked_fill(before >= sampling.top_p * total, 0.0)
        probs = torch.zeros_like(probs).scatter(1, index, ranked)
    return probs
