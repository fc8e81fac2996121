"""The same functions of bfloat16 tensors on a GPU: torch's fused norm and flash attention; gate and turns in Triton."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

HEAD_MULTIPLE, LARGEST_HEAD = 8, 256
"""Head sizes that flash attention takes."""


@cache
def _gates() -> Any:
    """The compiled gate; None where torch comes without Triton."""
    try:
        from rlhf.models.kernels import gates
    except ImportError:
        return None
    return gates


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x / sqrt(mean(x^2) + eps) * weight`` of x (rows, size), and the factor, (rows, 1) float32."""
    return torch.ops.aten._fused_rms_norm(x, [x.shape[-1]], weight, eps)


def rms_norm_backward(gradient: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, beside: Tensor) -> Tensor:
    """Gradient of x, added to that of a way beside the norm."""
    wanted = [True, False]
    back, _ = torch.ops.aten._fused_rms_norm_backward(gradient, x, [x.shape[-1]], inverse, weight, wanted)
    return back.add_(beside)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``."""
    found = _gates()
    return F.silu(gate).mul_(up) if found is None else found.gated(gate, up)


def gated_backward(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up."""
    found = _gates()
    if found is None:
        return torch.ops.aten.silu_backward(gradient * up, gate), F.silu(gate).mul_(gradient)
    return found.gated_backward(gradient, gate, up)


def attention(
    query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, starts: Tensor, scale: float, longest: int
) -> tuple[Tensor, Tensor]:
    """Causal attention within each sequence of a packed row (arXiv:2205.14135), after rotary positions.

    Query and key are turned where they stand: the way back takes them as this leaves them. Shapes as in
    ``calls.attention``; starts are int32 on the GPU, ``longest`` is the longest sequence's tokens.
    """
    query, key, value = (_heads(states, cos) for states in (query, key, value))
    _turn(query, cos, sin)
    _turn(key, cos, sin)
    found, normalizer, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, starts, starts, longest, longest, 0.0, True, False, scale=scale
    )
    return found.flatten(1), normalizer


def attention_backward(
    gradient: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    angles: tuple[Tensor, Tensor],
    results: tuple[Tensor, Tensor],
    starts: Tensor,
    scale: float,
    longest: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value before their turns; ``inputs`` are as ``attention`` left them."""
    cos, sin = angles
    attended, normalizer = results
    nothing = torch.zeros(2, dtype=torch.uint64, device=gradient.device)  # the state of a dropout that is off
    to_query, to_key, to_value = torch.ops.aten._flash_attention_backward(
        _heads(gradient.contiguous(), cos), *(_heads(states, cos) for states in inputs), _heads(attended, cos),
        normalizer, starts, starts, longest, longest, 0.0, True, nothing, nothing, scale=scale,
    )  # fmt: skip
    to_query, to_key = to_query.contiguous(), to_key.contiguous()
    _turn(to_query, cos, sin, back=True)
    _turn(to_key, cos, sin, back=True)
    return to_query.flatten(1), to_key.flatten(1), to_value.flatten(1)


def _heads(states: Tensor, cos: Tensor) -> Tensor:
    """(tokens, heads * size) -> (tokens, heads, size)."""
    return states.unflatten(1, (-1, cos.shape[-1]))


def _turn(states: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> None:
    """Rotary positions of (tokens, heads, size) in place, halves paired; ``back`` turns a gradient."""
    found = _gates()
    if found is not None:
        found.turn_(states, cos, sin, back=back)
        return
    half = states.shape[-1] // 2
    (one, two), (cos_one, cos_two), (sin_one, sin_two) = (
        (part[..., :half], part[..., half:]) for part in (states, cos[:, None], sin[:, None])
    )
    if back:
        first, second = one * cos_one + two * sin_two, two * cos_two - one * sin_one
    else:
        first, second = one * cos_one - two * sin_one, two * cos_two + one * sin_two
    states[..., :half], states[..., half:] = first, second
