"""An act's working memory goes back before another process begins its own: a CPU's, and that of a GPU that is shared.

The C library, and torch on a GPU, keep what was freed for the same process: after an update the trained rank would
hold its activations while the rollout workers draw, and they their caches while it learns. The machine would need the
sum of all peaks instead of the largest.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache

import torch

SHARED = "RLHF_SHARES_GPU"
"""Set to 1 in the environment of workers that have a fraction of a GPU."""


def give_back() -> None:
    """Returns freed memory to the system; tensors in use stay where they are.

    On a GPU that is one's own nothing is returned, nor under C libraries without ``malloc_trim``.
    """
    if torch.cuda.is_initialized() and shares_gpu():
        torch.cuda.empty_cache()
    if (trim := _trimmer()) is not None:
        trim(0)


def shares_gpu() -> bool:
    """Whether other workers have parts of this process's GPU."""
    return os.environ.get(SHARED) == "1"


@cache
def _trimmer() -> Callable[[int], int] | None:
    return None if torch.cuda.is_available() else getattr(ctypes.CDLL(None), "malloc_trim", None)
