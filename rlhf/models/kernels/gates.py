"""The gate of a feed-forward and its way back as one pass over memory each, on a GPU; importing it needs Triton."""

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
