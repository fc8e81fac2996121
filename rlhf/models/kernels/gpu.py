"""The same functions of bfloat16 tensors on a GPU: torch's own fused norm and flash attention, and a gate in Triton."""

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

    Shapes as in ``calls.attention``; starts are int32 on the GPU, ``longest`` is the longest sequence's tokens.
    """
    turned = [_turn(_heads(states, cos), cos, sin) for states in (query, key)]
    found, normalizer, *_ = torch.ops.aten._flash_attention_forward(
        *turned, _heads(value, cos), starts, starts, longest, longest, 0.0, True, False, scale=scale
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
    """Gradients of query, key and value; the turned ones are made again."""
    cos, sin = angles
    query, key, value = (_heads(states, cos) for states in inputs)
    attended, normalizer = results
    nothing = torch.zeros(2, dtype=torch.uint64, device=query.device)  # the state of a dropout that is off
    to_query, to_key, to_value = torch.ops.aten._flash_attention_backward(
        _heads(gradient, cos), _turn(query, cos, sin), _turn(key, cos, sin), value, _heads(attended, cos), normalizer,
        starts, starts, longest, longest, 0.0, True, nothing, nothing, scale=scale,
    )  # fmt: skip
    back = _turn_back(to_query, cos, sin), _turn_back(to_key, cos, sin), to_value
    return back[0].flatten(1), back[1].flatten(1), back[2].flatten(1)


def _heads(states: Tensor, cos: Tensor) -> Tensor:
    """(tokens, heads * size) -> (tokens, heads, size)."""
    return states.unflatten(1, (-1, cos.shape[-1]))


def _turn(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (arXiv:2104.09864) of (tokens, heads, size), halves paired."""
    half = states.shape[-1] // 2
    other = torch.cat([-states[..., half:], states[..., :half]], dim=-1)
    return torch.addcmul(states * cos[:, None], other, sin[:, None])


def _turn_back(gradient: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = gradient.shape[-1] // 2
    other = gradient * sin[:, None]
    other = torch.cat([other[..., half:], -other[..., :half]], dim=-1)
    return torch.addcmul(other, gradient, cos[:, None])
