"""On a CPU an act's working memory goes back to the system before another process begins its own.

The C library keeps what was freed for the next allocation of the same process: after an update the trained rank would
hold its activations while the rollout workers draw, and they their caches while it learns. The machine would need the
sum of all peaks instead of the largest.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch


def give_back() -> None:
    """Returns freed memory to the system; tensors in use stay where they are.

    Does nothing beside a GPU, whose host memory is no bottleneck, and under C libraries without ``malloc_trim``.
    """
    if (trim := _trimmer()) is not None:
        trim(0)


@cache
def _trimmer() -> Callable[[int], int] | None:
    return None if torch.cuda.is_available() else getattr(ctypes.CDLL(None), "malloc_trim", None)
