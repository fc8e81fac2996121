"""Frozen matrices that read the same input, with their adapters and what makes that input, in one call each way.

For fp32 on processors with AVX-512 whose library of choice is not MKL: there its tiles are at 97 % of what a core does,
3 to 7 % above the libraries, and an adapter's products cost their operations alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import Structure, c_float, c_int, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from rlhf.models.fronts import Front, Gate, Norm, Plain
from rlhf.models.kernels import calls
from rlhf.models.kernels.adapting import WIDTH
from rlhf.models.products import prefers_onednn

KINDS = (Plain, Norm, Gate)
"""In the order of fan.cpp's numbers."""
FEW_ROWS = 48
"""With fewer rows, copying the matrices into panels costs more than it brings."""

Frozen = Sequence[tuple[Tensor, Tensor | None]]
"""Matrices (out, in), each with a bias (out,) or None."""


class _Frozen(Structure):
    """The same as in fan.cpp, as the structures below."""

    _fields_ = (
        ("weight", c_void_p), ("row", c_int64), ("column", c_int64), ("bias", c_void_p), ("beside", c_void_p),
        ("out", c_int64),
    )  # fmt: skip


class _Tuner(Structure):
    _fields_ = (
        *[(name, c_void_p) for name in ("down", "up", "to_down", "to_up")],
        *[(name, c_int64) for name in ("frozen", "rank")],
        ("scaling", c_float),
    )


class _Part(Structure):
    _fields_ = (
        *[(name, c_int64) for name in ("first", "rows")],
        ("tuners", ctypes.POINTER(_Tuner)),
        ("count", c_int64),
        ("low", c_void_p),
    )


class _Fan(Structure):
    _fields_ = (
        ("frozen", ctypes.POINTER(_Frozen)),
        ("matrices", c_int64),
        ("parts", ctypes.POINTER(_Part)),
        *[(name, c_int64) for name in ("num_parts", "inputs", "rows")],
        ("threads", c_int),
    )


class _Front(Structure):
    _fields_ = (("kind", c_int64), ("x", c_void_p), ("other", c_void_p), ("eps", c_float))


class _Back(Structure):
    _fields_ = tuple((name, c_void_p) for name in ("beside", "to_x", "to_other"))


def takes(like: Tensor, frozen: Frozen) -> bool:
    """Whether products of these tokens with such matrices are computed here."""
    return len(like) >= FEW_ROWS and serves(like, frozen)


def serves(like: Tensor, frozen: Frozen) -> bool:
    """Whether they are if there are enough of them."""
    if like.device.type != "cpu" or like.dtype != torch.float32:
        return False
    widths = [size for weight, _ in frozen for size in weight.shape]
    return not any(width % WIDTH for width in widths) and prefers_onednn() and calls.library() is not None


def forward(
    front: Front, frozen: Frozen, parts: Sequence[Any], matrices: Sequence[Tensor], onto: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Results (tokens, out) of all matrices, and ``x A^T`` of each part, (its tokens, sum of ranks).

    Args:
        front: what makes the input x (tokens, in).
        parts: of ``fans``, one behind the other: an adapter's tokens, what it updates, its place in ``matrices``.
        onto: (tokens, out), what a single matrix's result is added to.
    """
    num_tokens = len(front[0])
    results = [front[0].new_empty(num_tokens, len(weight)) for weight, _ in frozen]
    inner = [front[0].new_empty(_length(part), part.members[-1].columns.stop) for part in parts]
    fan, held = _described(frozen, results, parts, matrices, inner, [None] * len(matrices), num_tokens)
    told, kept = _told(front)
    onto = None if onto is None else onto.contiguous()
    calls.library().fan_forward(ctypes.byref(fan), ctypes.byref(told), _at(onto))
    del held, kept
    return results, inner


def backward(
    front: Front,
    frozen: Frozen,
    parts: Sequence[Any],
    gradients: Sequence[Tensor],
    matrices: Sequence[Tensor],
    inner: Sequence[Tensor],
    wants: Sequence[bool],
    beside: Tensor | None,
    wants_x: bool,
) -> tuple[tuple[Tensor, ...], list[Tensor | None]]:
    """Gradients of what ``front`` holds, none if none is wanted, and of the trained matrices that want one.

    Args:
        gradients: of the results; ``inner``: as ``forward`` returned them.
        beside: what the gradient of a norm's x is added to, (tokens, in).
    """
    found = [torch.empty_like(matrix) if wanted else None for matrix, wanted in zip(matrices, wants, strict=True)]
    gradients = [gradient.contiguous() for gradient in gradients]
    fan, held = _described(frozen, gradients, parts, matrices, inner, found, len(front[0]))
    told, kept = _told(front)
    # a gate's result, which the adapters' gradients need, is made on the way back through it
    goes_back = wants_x or isinstance(front, Gate)
    to_x = torch.empty_like(front[0]) if goes_back else None
    to_other = torch.empty_like(front[0]) if isinstance(front, Gate) else None
    if isinstance(front, Norm):
        beside = torch.zeros_like(front.x) if beside is None else beside.contiguous()
    back = _Back(_at(beside), _at(to_x), _at(to_other))
    calls.library().fan_backward(ctypes.byref(fan), ctypes.byref(told), ctypes.byref(back))
    del held, kept
    return (tuple(each for each in (to_x, to_other) if each is not None) if wants_x else ()), found


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _length(part: Any) -> int:
    return int(part.where.stop - part.where.start)


def _told(front: Front) -> tuple[_Front, list[Tensor]]:
    """With the tensors it points to."""
    kept = [tensor.contiguous() for tensor in front if isinstance(tensor, Tensor)]
    other = kept[1].data_ptr() if len(kept) > 1 else None
    return _Front(
        KINDS.index(type(front)), kept[0].data_ptr(), other, front.eps if isinstance(front, Norm) else 0.0
    ), kept


def _described(
    frozen: Frozen,
    beside: Sequence[Tensor],
    parts: Sequence[Any],
    matrices: Sequence[Tensor],
    inner: Sequence[Tensor],
    found: Sequence[Tensor | None],
    num_tokens: int,
) -> tuple[_Fan, list[Any]]:
    """With what it points to. Tokens of no part are parts without an adapter."""
    weights = [weight if 1 in weight.stride() else weight.contiguous() for weight, _ in frozen]
    rows = [
        _Frozen(weight.data_ptr(), *weight.stride()[::-1], _at(bias), each.data_ptr(), len(weight))
        for weight, (_, bias), each in zip(weights, frozen, beside, strict=True)
    ]
    told: list[_Part] = []
    held: list[Any] = [weights]
    at = 0
    for part, low in zip(parts, inner, strict=True):
        if part.where.start > at:
            told.append(_Part(at, part.where.start - at, None, 0, None))
        at = part.where.stop
        tuners = (_Tuner * len(part.members))()
        for number, (index, scaling, columns) in enumerate(part.members):
            place = part.first + 2 * number
            own, gradients = matrices[place : place + 2], found[place : place + 2]
            pointers = *[matrix.data_ptr() for matrix in own], *map(_at, gradients)
            tuners[number] = _Tuner(*pointers, index, columns.stop - columns.start, scaling)
        told.append(_Part(part.where.start, _length(part), tuners, len(tuners), low.data_ptr()))
        held.append(tuners)
    if at < num_tokens:
        told.append(_Part(at, num_tokens - at, None, 0, None))
    frozen_told, parts_told = (_Frozen * len(rows))(*rows), (_Part * len(told))(*told)
    sizes = len(told), frozen[0][0].shape[1], num_tokens, torch.get_num_threads()
    return _Fan(frozen_told, len(rows), parts_told, *sizes), [*held, frozen_told, parts_told]
