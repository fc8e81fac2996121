"""An act's working memory goes back before another process begins its own: a CPU's, and that of a GPU that is shared.

The C library, and torch on a GPU, keep what was freed for the same process: after an update the trained rank would
hold its activations while the rollout workers draw, and they their caches while it learns. The machine would need the
sum of all peaks instead of the largest.

A little may stay. A page that went back is cleared by the system, and in a virtual machine found again by the host,
when it is touched next: for a small model a twentieth of a step.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from rlhf.workers.heap_settings import SHARED

KEPT_BYTES = 1 << 27
"""So much of an act's memory a process keeps for its next act."""
STATM = Path("/proc/self/statm")


class _Kept:
    """The process's own pages after its last return; None before."""

    pages: int | None = None


def give_back(*, all_of_it: bool = False) -> None:
    """Returns freed memory to the system if an act has left more than ``KEPT_BYTES``; tensors in use stay.

    On a GPU that is one's own nothing is returned, nor under C libraries without ``malloc_trim``.

    Args:
        all_of_it: even if it is less.
    """
    if torch.cuda.is_initialized() and shares_gpu():
        torch.cuda.empty_cache()
    if (trim := _trimmer()) is None:
        return
    grown = None if _Kept.pages is None else (_own_pages() - _Kept.pages) * os.sysconf("SC_PAGE_SIZE")
    if all_of_it or grown is None or grown > KEPT_BYTES:
        trim(0)
        _Kept.pages = _own_pages()


def _own_pages() -> int:
    """Resident pages that no file and no shared memory is behind; 0 where the system does not tell."""
    if not STATM.exists():
        return 0
    _, resident, shared, *_ = STATM.read_bytes().split()
    return int(resident) - int(shared)


def shares_gpu() -> bool:
    """Whether other workers have parts of this process's GPU."""
    return os.environ.get(SHARED) == "1"


@cache
def _trimmer() -> Callable[[int], int] | None:
    return None if torch.cuda.is_available() else getattr(ctypes.CDLL(None), "malloc_trim", None)
