"""Frozen matrices that read the same input, with their adapters and what makes that input, in one call each way.

For fp32 on processors with AVX-512 whose library of choice is not MKL: there its tiles are at 97 % of what a core does,
3 to 7 % above the libraries, and an adapter's products cost their operations alone.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Sequence
from ctypes import c_int64
from functools import cache
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


PART_WORDS = 5
"""Words of a part in fan.cpp; every field of its structures is one word."""


class Panels:
    """Frozen matrices once more, in the order in which tiles read them; made at the first use of each way.

    Whoever asks for them promises that the matrices stay as they are. Without them every call copies a part at a time,
    which is a twentieth of a pass over two hundred tokens.
    """

    def __init__(self) -> None:
        self._forth: Tensor | None = None
        self._back: Tensor | None = None

    def forth(self, frozen: Frozen) -> Tensor:
        """For the way there."""
        if self._forth is None:
            self._forth = _packed(frozen, calls.library().pack_forth)
        return self._forth

    def back(self, frozen: Frozen) -> Tensor:
        """For the way back."""
        if self._back is None:
            self._back = _packed(frozen, calls.library().pack_back)
        return self._back


def _packed(frozen: Frozen, pack: Any) -> Tensor:
    found = frozen[0][0].new_empty(sum(weight.numel() for weight, _ in frozen))
    told, held = _described(frozen, [None] * len(frozen), (), (), (), (), 0, None)
    pack(told, found.data_ptr())
    del held
    return found


def takes(like: Tensor, frozen: Frozen) -> bool:
    """Whether products of these tokens with such matrices are computed here."""
    return like.shape[0] >= FEW_ROWS and serves(like, frozen)


def serves(like: Tensor, frozen: Frozen) -> bool:
    """Whether they are if there are enough of them."""
    if like.device.type != "cpu" or like.dtype != torch.float32:
        return False
    widths = [size for weight, _ in frozen for size in weight.shape]
    return not any(width % WIDTH for width in widths) and prefers_onednn() and calls.library() is not None


def forward(
    front: Front,
    frozen: Frozen,
    parts: Sequence[Any],
    matrices: Sequence[Tensor],
    onto: Tensor | None,
    panels: Panels | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Results (tokens, out) of all matrices, and ``x A^T`` of each part, (its tokens, sum of ranks).

    Args:
        front: what makes the input x (tokens, in).
        parts: of ``fans``, one behind the other: an adapter's tokens, what it updates, its place in ``matrices``.
        onto: (tokens, out), what a single matrix's result is added to.
    """
    x, num_tokens = front[0], front[0].shape[0]
    results = [x.new_empty(num_tokens, weight.shape[0]) for weight, _ in frozen]
    inner = [x.new_empty(part.where.stop - part.where.start, part.members[-1].columns.stop) for part in parts]
    packed = None if panels is None else panels.forth(frozen)
    told, held = _described(frozen, results, parts, matrices, inner, (), num_tokens, packed)
    before, kept = _told(front)
    onto = None if onto is None else onto.contiguous()
    calls.library().fan_forward(told, before, _at(onto))
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
    panels: Panels | None = None,
) -> tuple[tuple[Tensor, ...], list[Tensor | None]]:
    """Gradients of what ``front`` holds, none if none is wanted, and of the trained matrices that want one.

    Args:
        gradients: of the results; ``inner``: as ``forward`` returned them.
        beside: what the gradient of a norm's x is added to, (tokens, in).
    """
    found = [torch.empty_like(matrix) if wanted else None for matrix, wanted in zip(matrices, wants, strict=True)]
    gradients = [gradient.contiguous() for gradient in gradients]
    packed = panels.back(frozen) if panels is not None and wants_x else None
    told, held = _described(frozen, gradients, parts, matrices, inner, found, front[0].shape[0], packed)
    before, kept = _told(front)
    # a gate's result, which the adapters' gradients need, is made on the way back through it
    goes_back = wants_x or isinstance(front, Gate)
    to_x = torch.empty_like(front[0]) if goes_back else None
    to_other = torch.empty_like(front[0]) if isinstance(front, Gate) else None
    if isinstance(front, Norm):
        beside = torch.zeros_like(front.x) if beside is None else beside.contiguous()
    calls.library().fan_backward(told, before, _words([_at(beside), _at(to_x), _at(to_other)]))
    del held, kept
    return (tuple(each for each in (to_x, to_other) if each is not None) if wants_x else ()), found


def _at(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _words(values: Sequence[int]) -> Any:
    return (c_int64 * len(values))(*values)


@cache
def _bits(number: float) -> int:
    """A double as the word that it is."""
    return int.from_bytes(struct.pack("=d", number), sys.byteorder, signed=True)


def _told(front: Front) -> tuple[Any, list[Tensor]]:
    """What stands in front, with the tensors it points to."""
    kept = [tensor.contiguous() for tensor in front if isinstance(tensor, Tensor)]
    other = kept[1].data_ptr() if len(kept) > 1 else 0
    eps = front.eps if isinstance(front, Norm) else 0.0
    return _words([KINDS.index(type(front)), kept[0].data_ptr(), other, _bits(eps)]), kept


def _described(
    frozen: Frozen,
    beside: Sequence[Tensor | None],
    parts: Sequence[Any],
    matrices: Sequence[Tensor],
    inner: Sequence[Tensor],
    found: Sequence[Tensor | None],
    num_tokens: int,
    panels: Tensor | None,
) -> tuple[Any, list[Tensor]]:
    """A fan with all that it points to, one behind the other, and what must live as long.

    Tokens of no part are parts without an adapter.
    """
    weights = [weight if 1 in weight.stride() else weight.contiguous() for weight, _ in frozen]
    rows: list[int] = []
    for weight, (_, bias), each in zip(weights, frozen, beside, strict=True):
        column, row = weight.stride()
        rows += (weight.data_ptr(), row, column, _at(bias), _at(each), weight.shape[0])
    tuners: list[int] = []
    told: list[int] = []
    starts: list[tuple[int, int]] = []  # words of parts that point to tuners, and the word where these begin
    at = 0
    for part, low in zip(parts, inner, strict=True):
        first, end = part.where.start, part.where.stop
        if first > at:
            told += (at, first - at, 0, 0, 0)
        starts.append((len(told) + 2, len(tuners)))
        told += (first, end - first, 0, len(part.members), low.data_ptr())
        for number, (index, scaling, columns) in enumerate(part.members):
            place = part.first + 2 * number
            gradients = [_at(gradient) for gradient in found[place : place + 2]] or (0, 0)
            tuners += (matrices[place].data_ptr(), matrices[place + 1].data_ptr(), *gradients)
            tuners += (index, columns.stop - columns.start, _bits(scaling))
        at = end
    if at < num_tokens:
        told += (at, num_tokens - at, 0, 0, 0)
    sizes = frozen[0][0].shape[1], num_tokens, torch.get_num_threads(), _at(panels)
    head = [0, len(weights), 0, len(told) // PART_WORDS, *sizes]
    words = _words(head + rows + tuners + told)
    base, size = ctypes.addressof(words), ctypes.sizeof(c_int64)
    behind_rows = len(head) + len(rows)
    words[0], words[2] = base + size * len(head), base + size * (behind_rows + len(tuners))
    for word, start in starts:
        words[behind_rows + len(tuners) + word] = base + size * (behind_rows + start)
    return words, weights
