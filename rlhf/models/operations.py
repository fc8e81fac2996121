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
from torch import nn
from transformers import PreTrainedModel

from rlhf.models import halved, products

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
        tail: of ``body``, what only those tokens meet whose last hidden states are read (``halved``).
        adapter_tails: the same of ``adapters``.
    """

    body: int
    adapters: tuple[int, ...]
    head: int
    attention: int
    whole_policy: bool = False
    tail: int = 0
    adapter_tails: tuple[int, ...] = ()

    def role(
        self,
        number: int,
        lengths: Sequence[int],
        num_read: int,
        *,
        trained: bool,
        logits: bool = False,
        whole: bool = False,
        to_end: bool = False,
    ) -> float:
        """Operations of one role's pass over sequences of these lengths, forward alone or with backward.

        A sequence's last token is predicted and valued by the states before it, and needs none itself.

        A frozen weight costs 2 operations per token forward and 2 backward, a trained one 2 more; attention 2 per pair
        of tokens and unit of width under the causal mask, and twice that backward.

        Args:
            number: of the trained role whose adapter it has, or one of that size.
            num_read: tokens whose last hidden states are read.
            logits: each of these gets logits.
            whole: body and head are what it trains; there is no adapter.
            to_end: what is read is the last token's state.
        """
        lengths = lengths if to_end else [length - 1 for length in lengths]
        tokens, pairs = sum(lengths), sum(length**2 for length in lengths)
        unread = tokens - num_read
        frozen, own = (4, 6) if trained else (2, 2)
        body, head = self.body * tokens, self.head * num_read * logits
        if whole:
            return float(own * (body + head + self.attention * pairs))
        adapter = self.adapters[number] * tokens
        if self.adapter_tails:
            body, adapter = body - self.tail * unread, adapter - self.adapter_tails[number] * unread
        return float(frozen * (body + head) + own * (self.attention * pairs + adapter))

    def update(self, lengths: Sequence[int], num_response_tokens: int, *, policy_alone: bool = False) -> float:
        """Operations of forward and backward pass of all trained roles; the policy, the first, alone needs logits."""
        read, others = num_response_tokens, range(1, 1 if policy_alone else len(self.adapters))
        policy = self.role(0, lengths, read, trained=True, logits=True, whole=self.whole_policy)
        return policy + sum(self.role(number, lengths, read, trained=True) for number in others)


def update_costs(model: PreTrainedModel, trained: dict[str, int], *, whole_policy: bool = False) -> UpdateCosts:
    """Counts a causal model with adapters on it; ``trained`` holds the trained weights of each role."""
    head: Any = model.get_output_embeddings()
    body = sum(map(_weights, (module for module in _matrices(model) if module is not head)))
    config: Any = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = size * config.num_attention_heads * config.num_hidden_layers
    tail = halved.tail_of(model)
    return UpdateCosts(
        body,
        tuple(trained.values()),
        head.in_features * head.out_features,
        width,
        whole_policy,
        sum(_weights(module) for part in tail for module in _matrices(part)),
        tuple(sum(_adapter_weights(part, role) for part in tail) for role in trained) if tail else (),
    )


def _matrices(module: nn.Module) -> list[Any]:
    """Linear layers, adapters' own left out."""
    return [
        part
        for name, part in module.named_modules()
        if hasattr(part, "in_features") and "lora_" not in name and not hasattr(part, "base_layer")
    ]


def _weights(module: Any) -> int:
    return int(module.in_features * module.out_features)


def _adapter_weights(module: nn.Module, adapter: str) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if "lora_" in name and f".{adapter}." in name)


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
