"""The kernels as functions of tensors, one layer's step each: float32 on a CPU, bfloat16 on a GPU (``gpu``).

On a CPU bfloat16 is widened on the way in and rounded on the way out; factors and normalizers stay float32. Only a step
of decoding (``decoding``) has a kernel that reads it.

On a CPU norms and gates work without them. Calls go through ctypes: nothing depends on torch's binary interface, and a
call costs 3 microseconds.
"""

from __future__ import annotations

import ctypes
import logging
from ctypes import c_float, c_int, c_int64, c_void_p
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf.models import norms
from rlhf.models.kernels import gpu
from rlhf.models.kernels.build import library_path

logger = logging.getLogger(__name__)

SIGNATURES = {  # pointers, then sizes, a factor where there is one, threads
    "rms_norm": (*[c_void_p] * 4, *[c_int64] * 2, c_float, c_int),
    "rms_norm_backward": (*[c_void_p] * 6, *[c_int64] * 2, c_int),
    "gated": (*[c_void_p] * 3, *[c_int64] * 2, c_int),
    "gated_backward": (*[c_void_p] * 5, *[c_int64] * 2, c_int),
    "attention": (*[c_void_p] * 8, *[c_int64] * 4, c_float, c_int),
    "attention_backward": (*[c_void_p] * 12, *[c_int64] * 4, c_float, c_int),
    "decode": (*[c_void_p] * 6, c_int64, c_int),
    "decode_bfloat16": (*[c_void_p] * 6, c_int64, c_int),
}
HEAD_MULTIPLE = 16
"""Head sizes that the attention kernels take are multiples of this."""


@cache
def library() -> Any:
    """The compiled kernels, or None; which of the two is said once."""
    path = library_path()
    try:
        found = ctypes.CDLL(str(path))
        for name, types in SIGNATURES.items():
            getattr(found, name).argtypes, getattr(found, name).restype = types, None
    except (OSError, AttributeError) as error:
        logger.info("no compiled kernels (make setup makes them), plain torch runs instead: %s", error)
        return None
    logger.info("compiled kernels: %s", path)
    return found


def attends(like: Tensor, head_size: int) -> bool:
    """Whether attention with heads of this size is computed here, on the device of ``like``."""
    if like.is_cuda:
        return head_size % gpu.HEAD_MULTIPLE == 0 and head_size <= gpu.LARGEST_HEAD
    return head_size % HEAD_MULTIPLE == 0 and library() is not None


def _wide(*tensors: Tensor) -> Any:
    """The same in float32, in order."""
    return [tensor.float() for tensor in tensors]


def _run(name: str, *arguments: Any) -> None:
    pointers = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    getattr(library(), name)(*pointers, torch.get_num_threads())


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x / sqrt(mean(x^2) + eps) * weight`` of x (rows, size), and the factor, (rows, 1)."""
    if x.is_cuda:
        return gpu.rms_norm(x, weight, eps)
    if x.dtype != torch.float32:
        result, inverse = rms_norm(x.float(), weight.float(), eps)
        return result.to(x.dtype), inverse
    if library() is None:
        inverse = norms.inverse_rms(x, eps)
        return (x * inverse).mul_(weight), inverse
    x = x.contiguous()
    result, inverse = torch.empty_like(x), x.new_empty(len(x), 1)
    _run("rms_norm", x, weight, result, inverse, *x.shape, eps)
    return result, inverse


def rms_norm_backward(gradient: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, beside: Tensor) -> Tensor:
    """Gradient of x, added to that of a way beside the norm; all (rows, size), inverse (rows, 1)."""
    if x.is_cuda:
        return gpu.rms_norm_backward(gradient, x, weight, inverse, beside)
    if x.dtype != torch.float32:
        return rms_norm_backward(*_wide(gradient, x, weight, inverse, beside)).to(x.dtype)
    if library() is None:
        return norms.to_input(gradient, x, weight, inverse).add_(beside)
    gradient, x, beside = gradient.contiguous(), x.contiguous(), beside.contiguous()
    back = torch.empty_like(x)
    _run("rms_norm_backward", gradient, x, weight, inverse, beside, back, *x.shape)
    return back


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, all (rows, size)."""
    if gate.is_cuda:
        return gpu.gated(gate, up)
    if gate.dtype != torch.float32:
        return gated(*_wide(gate, up)).to(gate.dtype)
    if library() is None:
        return F.silu(gate).mul_(up)
    result = torch.empty_like(gate)
    _run("gated", gate, up, result, *gate.shape)
    return result


def gated_backward(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up, all (rows, size)."""
    if gate.is_cuda:
        return gpu.gated_backward(gradient, gate, up)
    if gate.dtype != torch.float32:
        to_gate, to_up = gated_backward(*_wide(gradient, gate, up))
        return to_gate.to(gate.dtype), to_up.to(gate.dtype)
    if library() is None:
        return torch.ops.aten.silu_backward(gradient * up, gate), F.silu(gate).mul_(gradient)
    gradient = gradient.contiguous()
    to_gate, to_up = torch.empty_like(gate), torch.empty_like(up)
    _run("gated_backward", gradient, gate, up, to_gate, to_up, *gate.shape)
    return to_gate, to_up


def attention(
    query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, starts: Tensor, scale: float, longest: int = 0
) -> tuple[Tensor, Tensor]:
    """Causal attention within each sequence of a packed row, after rotary positions.

    Args:
        query: (tokens, heads * size); key and value (tokens, groups * size), heads of a group one after the other.
        cos: (tokens, size), as ``sin``.
        starts: (sequences + 1,) long, the first token of each sequence and the number of tokens; on a GPU int32.
        longest: tokens of the longest sequence, which a GPU asks for.

    Returns:
        (tokens, heads * size), and for the way back (heads, tokens). On a GPU query and key are left turned, as the way
        back takes them there.
    """
    if query.is_cuda:
        return gpu.attention(query, key, value, cos, sin, starts, scale, longest)
    if query.dtype != torch.float32:
        wide = query.float(), key.float(), value.float(), cos.float(), sin.float()
        result, normalizer = attention(*wide, starts, scale)
        return result.to(query.dtype), normalizer
    heads, groups, size = _heads(query, key, cos)
    result, normalizer = torch.empty_like(query), query.new_empty(heads, len(query))
    sizes = (len(starts) - 1, heads, groups, size)
    _run("attention", query, key, value, cos, sin, result, normalizer, starts, *sizes, scale)
    return result, normalizer


def attention_backward(
    gradient: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    angles: tuple[Tensor, Tensor],
    results: tuple[Tensor, Tensor],
    starts: Tensor,
    scale: float,
    longest: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value.

    Args:
        gradient: of the result, (tokens, heads * size).
        inputs: query, key and value as given to ``attention``; ``angles``: cos and sin; ``results``: what it returned.
    """
    if gradient.is_cuda:
        return gpu.attention_backward(gradient, inputs, angles, results, starts, scale, longest)
    if gradient.dtype != torch.float32:
        query, key, value = _wide(*inputs)
        cos, sin = _wide(*angles)
        attended, normalizer = _wide(*results)
        wide = attention_backward(
            gradient.float(), (query, key, value), (cos, sin), (attended, normalizer), starts, scale
        )
        return wide[0].to(gradient.dtype), wide[1].to(gradient.dtype), wide[2].to(gradient.dtype)
    heads, groups, size = _heads(inputs[0], inputs[1], angles[0])
    back = (torch.empty_like(inputs[0]), torch.empty_like(inputs[1]), torch.empty_like(inputs[2]))
    sizes = (len(starts) - 1, heads, groups, size)
    _run("attention_backward", gradient.contiguous(), *inputs, *angles, *results, *back, starts, *sizes, scale)
    return back


def _heads(query: Tensor, key: Tensor, cos: Tensor) -> tuple[int, int, int]:
    size = cos.shape[-1]
    return query.shape[-1] // size, key.shape[-1] // size, size
