"""What is one pass over memory each on a GPU: a feed-forward's gate and its way back, and rotary positions.

Importing it needs Triton, which reads annotations of kernels as types of its own: theirs have none but constants'.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _gated(gate, up, result, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(result + at, (g * tl.sigmoid(g) * u).to(result.dtype.element_ty), mask=inside)


@triton.jit
def _gated_backward(gradient, gate, up, to_gate, to_up, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    d = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(g)
    tl.store(to_gate + at, (d * u * s * (1.0 + g * (1.0 - s))).to(to_gate.dtype.element_ty), mask=inside)
    tl.store(to_up + at, (d * g * s).to(to_up.dtype.element_ty), mask=inside)


@triton.jit
def _turn(states, cos, sin, heads, HALF: tl.constexpr, WIDTH: tl.constexpr, BACK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)  # of (tokens * heads)
    at = tl.arange(0, WIDTH)
    inside = at < HALF
    place, angle = states + row * (2 * HALF) + at, (row // heads) * (2 * HALF) + at
    one = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    two = tl.load(place + HALF, mask=inside, other=0.0).to(tl.float32)
    cos_one = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)
    cos_two = tl.load(cos + angle + HALF, mask=inside, other=0.0).to(tl.float32)
    sin_one = tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)
    sin_two = tl.load(sin + angle + HALF, mask=inside, other=0.0).to(tl.float32)
    if BACK:
        first, second = one * cos_one + two * sin_two, two * cos_two - one * sin_one
    else:
        first, second = one * cos_one - two * sin_one, two * cos_two + one * sin_two
    kind = states.dtype.element_ty
    tl.store(place, first.to(kind), mask=inside)
    tl.store(place + HALF, second.to(kind), mask=inside)


def turn_(states: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
    """Rotary positions (arXiv:2104.09864) of (tokens, heads, size) where they stand; ``back`` turns a gradient.

    Args:
        states: contiguous, as cos and sin, (tokens, size).
    """
    tokens, heads, size = states.shape
    half = size // 2
    words = {"HALF": half, "WIDTH": triton.next_power_of_2(half), "BACK": back}
    _turn[(tokens * heads,)](states, cos, sin, heads, **words, num_warps=1)  # a head has but 64 or 128 numbers
    return states


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, all of one shape and contiguous."""
    result = torch.empty_like(gate)
    _launch(_gated, gate, up, result)
    return result


def gated_backward(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up."""
    to_gate, to_up = torch.empty_like(gate), torch.empty_like(up)
    _launch(_gated_backward, gradient.contiguous(), gate, up, to_gate, to_up)
    return to_gate, to_up


def _launch(kernel: Any, *tensors: Tensor) -> None:
    count = tensors[0].numel()
    kernel[(triton.cdiv(count, BLOCK),)](*tensors, count, BLOCK=BLOCK)
