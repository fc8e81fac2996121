"""The kernels as functions of tensors, one layer's step each: on a CPU, and for bfloat16 on a GPU (``gpu``).

On a CPU they read and write bfloat16 as well, and compute in float32; factors and normalizers are float32.

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
    "tell": (*[c_void_p] * 6, *[c_int64] * 3, c_float, c_int),
    "tell_backward": (*[c_void_p] * 6, *[c_int64] * 3, c_float, c_int),
    "adapt": (*[c_void_p] * 3, *[c_int64] * 3, c_int),
    "adapt_backward": (*[c_void_p] * 4, *[c_int64] * 3, c_int),
}
OF_FLOATS = {
    **{name: (c_void_p,) * 3 for name in ("fan_forward", "fan_backward")},
    **{name: (c_void_p,) * 2 for name in ("pack_forth", "pack_back", "pack_thin")},
}
"""Of floats alone."""
SUFFIXES = {torch.float32: "", torch.bfloat16: "_bfloat16"}
"""Of the names above, by the type of all numbers but factors and normalizers."""
HEAD_MULTIPLE = 16
"""Head sizes that the attention kernels take are multiples of this."""


@cache
def library() -> Any:
    """The compiled kernels, or None; which of the two is said once."""
    path = library_path()
    try:
        found = ctypes.CDLL(str(path))
        for name, types in SIGNATURES.items():
            for suffix in SUFFIXES.values():
                function = getattr(found, name + suffix)
                function.argtypes, function.restype = types, None
        for name, types in OF_FLOATS.items():
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


def function_of(name: str, dtype: torch.dtype) -> Any:
    """A kernel for numbers of a type; the library must be there."""
    return getattr(library(), name + SUFFIXES[dtype])


def _run(name: str, first: Tensor, *others: Any) -> None:
    pointers = [a.data_ptr() if isinstance(a, Tensor) else a for a in (first, *others)]
    function_of(name, first.dtype)(*pointers, torch.get_num_threads())


def _has(dtype: torch.dtype) -> bool:
    """Whether there is a compiled kernel for numbers of this type."""
    return dtype in SUFFIXES and library() is not None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x / sqrt(mean(x^2) + eps) * weight`` of x (rows, size), and the factor, (rows, 1)."""
    if x.is_cuda:
        return gpu.rms_norm(x, weight, eps)
    if not _has(x.dtype):
        wide = x.float()
        inverse = norms.inverse_rms(wide, eps)
        return (wide * inverse).mul_(weight).to(x.dtype), inverse
    x = x.contiguous()
    result, inverse = torch.empty_like(x), x.new_empty(len(x), 1, dtype=torch.float32)
    _run("rms_norm", x, weight, result, inverse, *x.shape, eps)
    return result, inverse


def rms_norm_backward(gradient: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, beside: Tensor) -> Tensor:
    """Gradient of x, added to that of a way beside the norm; all (rows, size), inverse (rows, 1)."""
    if x.is_cuda:
        return gpu.rms_norm_backward(gradient, x, weight, inverse, beside)
    if not _has(x.dtype):
        g, wide, factors, other = _wide(gradient, x, weight, beside)
        return norms.to_input(g, wide, factors, inverse).add_(other).to(x.dtype)
    gradient, x, beside = gradient.contiguous(), x.contiguous(), beside.contiguous()
    back = torch.empty_like(x)
    _run("rms_norm_backward", gradient, x, weight, inverse, beside, back, *x.shape)
    return back


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, all (rows, size)."""
    if gate.is_cuda:
        return gpu.gated(gate, up)
    if not _has(gate.dtype):
        opened, other = _wide(gate, up)
        return F.silu(opened).mul_(other).to(gate.dtype)
    result = torch.empty_like(gate)
    _run("gated", gate, up, result, *gate.shape)
    return result


def gated_backward(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up, all (rows, size)."""
    if gate.is_cuda:
        return gpu.gated_backward(gradient, gate, up)
    if not _has(gate.dtype):
        g, opened, other = _wide(gradient, gate, up)
        back = torch.ops.aten.silu_backward(g * other, opened)
        return back.to(gate.dtype), F.silu(opened).mul_(g).to(gate.dtype)
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
    heads, groups, size = _heads(query, key, cos)
    result, normalizer = torch.empty_like(query), query.new_empty(heads, len(query), dtype=torch.float32)
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
    heads, groups, size = _heads(inputs[0], inputs[1], angles[0])
    back = (torch.empty_like(inputs[0]), torch.empty_like(inputs[1]), torch.empty_like(inputs[2]))
    sizes = (len(starts) - 1, heads, groups, size)
    _run("attention_backward", gradient.contiguous(), *inputs, *angles, *results, *back, starts, *sizes, scale)
    return back


def tells(logits: Tensor) -> bool:
    """Whether there is a kernel for what these logits say of tokens."""
    return logits.device.type == "cpu" and _has(logits.dtype)


def tell(logits: Tensor, token_ids: Tensor, never: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """What logits (n, vocabulary), contiguous, say of tokens, in float32.

    Args:
        token_ids: (n,) long.
        never: (m,) long, tokens that are not drawn.
        scale: of the logits.

    Returns:
        Log-probabilities, entropies, and normalizers for the way back; (n,) each.
    """
    rows, size = logits.shape
    token_ids = token_ids.contiguous()
    found = [logits.new_empty(rows, dtype=torch.float32) for _ in range(3)]
    _run("tell", logits, token_ids, never, *found, rows, size, len(never), scale)
    return found[0], found[1], found[2]


def tell_backward(
    gradient: Tensor, logits: Tensor, token_ids: Tensor, never: Tensor, normalizers: Tensor, scale: float
) -> Tensor:
    """Gradient of the logits, given that of the log-probabilities, (n,) float32."""
    rows, size = logits.shape
    back = torch.empty_like(logits)
    tensors = (gradient.contiguous(), logits, token_ids.contiguous(), never, normalizers, back)
    kernel = function_of("tell_backward", logits.dtype)
    kernel(*[t.data_ptr() for t in tensors], rows, size, len(never), scale, torch.get_num_threads())
    return back


def _heads(query: Tensor, key: Tensor, cos: Tensor) -> tuple[int, int, int]:
    size = cos.shape[-1]
    return query.shape[-1] // size, key.shape[-1] // size, size
