"""What an adapter adds to frozen matrices that read the same input, and its gradients, in one call each on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import Structure, c_float, c_int64, c_void_p
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.models.kernels import calls
from rlhf.models.kernels.calls import SUFFIXES, function_of

WIDTH = 16
"""Widths of matrices are multiples of this; ranks are free."""


class Member(NamedTuple):
    """One matrix's adapter: A (rank, in), B (out, rank), and the matrix's results (tokens, out) or their gradients."""

    down: Tensor
    up: Tensor
    scaling: float
    beside: Tensor


class _Member(Structure):
    """The same as in adapters.cpp, with the places of its gradients."""

    _fields_ = (
        *[(name, c_void_p) for name in ("down", "up", "beside", "to_down", "to_up")],
        *[(name, c_int64) for name in ("rank", "out")],
        ("scaling", c_float),
    )


@cache
def has_registers() -> bool:
    """Tiles of 8 x 32 sums fit the registers of AVX-512; with fewer registers the libraries are better."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def takes(like: Tensor, widths: Sequence[int]) -> bool:
    """Whether adapters between matrices of these widths are computed here, for tokens like these."""
    known = like.device.type == "cpu" and like.dtype in SUFFIXES and not any(width % WIDTH for width in widths)
    return known and has_registers() and calls.library() is not None


def forward(x: Tensor, members: Sequence[Member]) -> Tensor:
    """Adds ``scaling * x A^T B^T`` to every member's results, in place.

    Args:
        x: (tokens, in), contiguous, as all other tensors; of one type.

    Returns:
        ``x A^T`` of all members side by side, (tokens, sum of ranks).
    """
    low = x.new_empty(len(x), sum(len(member.down) for member in members))
    told = (_Member * len(members))(*[_told(member, None, None) for member in members])
    pointers = ctypes.addressof(told), x.data_ptr(), low.data_ptr()
    function_of("adapt", x.dtype)(*pointers, len(members), x.shape[1], len(x), torch.get_num_threads())
    return low


def backward(
    x: Tensor, low: Tensor, members: Sequence[Member], wants: Sequence[bool], onto: Tensor | None
) -> list[Tensor | None]:
    """Gradients of the members' matrices; adds that of the input to ``onto``, unless it is None.

    Args:
        x: (tokens, in), contiguous, as all other tensors; of one type.
        low: what ``forward`` returned.
        members: with the gradients of their results.
        wants: of A, B of each member in turn, whether it wants one.
        onto: (tokens, in).

    Returns:
        In the order of ``wants``, None for what wants none.
    """
    matrices = [matrix for member in members for matrix in (member.down, member.up)]
    found = [torch.empty_like(matrix) if wanted else None for matrix, wanted in zip(matrices, wants, strict=True)]
    places = zip(members, found[::2], found[1::2], strict=True)
    told = (_Member * len(members))(*[_told(member, to_down, to_up) for member, to_down, to_up in places])
    pointers = ctypes.addressof(told), x.data_ptr(), low.data_ptr(), None if onto is None else onto.data_ptr()
    function_of("adapt_backward", x.dtype)(*pointers, len(members), x.shape[1], len(x), torch.get_num_threads())
    return found


def _told(member: Member, to_down: Tensor | None, to_up: Tensor | None) -> _Member:
    gradients = [None if place is None else place.data_ptr() for place in (to_down, to_up)]
    pointers = member.down.data_ptr(), member.up.data_ptr(), member.beside.data_ptr()
    return _Member(*pointers, *gradients, *member.up.shape[::-1], member.scaling)
