"""How many floating-point operations an update needs, and how fast a plain matrix product runs on the same device.

Counted are the products that the mathematics asks for, over real tokens: recomputed activations, padding and everything
that is no matrix product are left out, so that a share of the peak can be compared between settings.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from transformers import PreTrainedModel

from rlhf.models import products

CPU_SIZE, GPU_SIZE = 1024, 8192


@dataclass(frozen=True)
class UpdateCosts:
    """What one token costs, in weights that it meets.

    Attributes:
        body: frozen weights of all layers.
        adapters: trained weights of each trained role, the policy first.
        head: weights of the output layer.
        attention: heads x head size, summed over layers.
        whole_policy: the policy trains body and head themselves, not an adapter on them.
    """

    body: int
    adapters: tuple[int, ...]
    head: int
    attention: int
    whole_policy: bool = False

    def role(
        self, adapter: int, lengths: Sequence[int], num_logits: int, *, trained: bool, whole: bool = False
    ) -> float:
        """Operations of one role's pass over sequences of these lengths, forward alone or with backward.

        A frozen weight costs 2 operations per token forward and 2 backward, a trained one 2 more; attention 2 per pair
        of tokens and unit of width under the causal mask, and twice that backward.

        Args:
            adapter: the role's trained weights.
            num_logits: tokens that get logits.
            whole: body and head are what it trains; there is no adapter.
        """
        tokens, pairs = sum(lengths), sum(length**2 for length in lengths)
        frozen, own = (4, 6) if trained else (2, 2)
        if whole:
            frozen, adapter = own, 0
        return float(
            frozen * (self.body * tokens + self.head * num_logits) + own * (self.attention * pairs + adapter * tokens)
        )

    def update(self, lengths: Sequence[int], num_response_tokens: int, *, policy_alone: bool = False) -> float:
        """Operations of forward and backward pass of all trained roles; the policy, the first, alone needs logits."""
        learning = self.adapters[:1] if policy_alone else self.adapters
        policy = self.role(learning[0], lengths, num_response_tokens, trained=True, whole=self.whole_policy)
        return policy + sum(self.role(own, lengths, 0, trained=True) for own in learning[1:])


def update_costs(model: PreTrainedModel, trained: dict[str, int], *, whole_policy: bool = False) -> UpdateCosts:
    """Counts a causal model with adapters on it; ``trained`` holds the trained weights of each role."""
    head: Any = model.get_output_embeddings()
    inner = [
        module
        for name, module in model.named_modules()
        if hasattr(module, "in_features") and "lora_" not in name and not hasattr(module, "base_layer")
    ]
    body = sum(m.in_features * m.out_features for m in inner if m is not head)
    config: Any = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = size * config.num_attention_heads * config.num_hidden_layers
    return UpdateCosts(body, tuple(trained.values()), head.in_features * head.out_features, width, whole_policy)


@cache
def product_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product, the best of several; measured once, by all ranks at once."""
    on_cpu = device.type == "cpu"
    size = CPU_SIZE if on_cpu else GPU_SIZE
    # nothing random: models start around here; and no constant, which a GPU multiplies faster than numbers
    one = torch.arange(size * size, device=device, dtype=torch.float32).sin_().view(size, size).to(dtype)
    best = float("inf")
    for _ in range(8):
        began = time.perf_counter()
        products.linear(one, one)
        if not on_cpu:
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best
