"""Steps of decoding as CUDA graphs: a step of a few rows is a thousand small kernels, each of which waits for Python.

A step is captured once per number of slots and of columns, and then replayed. It reads and writes the same tensors
every time; nothing in it may wait for the GPU or depend on a value that is there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

logger = logging.getLogger(__name__)


@dataclass
class Captures:
    """Whether the steps of a model can be captured: so it is believed until one could not be."""

    usable: bool = True


def can_be_captured(model: Any) -> bool:
    """Not over int8: bitsandbytes waits in every layer to see whether there are outliers (arXiv:2208.07339)."""
    return not getattr(model, "is_loaded_in_8bit", False)


class StepGraphs:
    """Graphs of one run of a decoder, whose tensors they hold.

    The first step of a shape runs as it is, so that libraries are ready and kernels compiled; the second is captured.
    What cannot be captured runs as it is from then on, in later runs too, which is said once. Where there was no memory
    for a graph, that holds for the run alone, and what it has captured is given back: the steps need the memory.

    Args:
        captures: of the model; shared by all runs over it.
    """

    def __init__(self, captures: Captures) -> None:
        self._captures, self._has_room = captures, True
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph | None] = {}
        self._pool: Any = None

    @property
    def num_captured(self) -> int:
        """How many shapes are replayed."""
        return sum(graph is not None for graph in self._graphs.values())

    def run(self, step: Callable[[int], None], num_slots: int, width: int) -> None:
        """Does ``step(width)`` for so many slots."""
        key = (num_slots, width)
        if not (self._captures.usable and self._has_room) or key not in self._graphs:
            self._graphs.setdefault(key, None)
            step(width)
            return
        graph = self._graphs[key]
        if graph is None:
            graph = self._graphs[key] = self._capture(step, width)
        if graph is None:
            step(width)
        else:
            graph.replay()

    def _capture(self, step: Callable[[int], None], width: int) -> torch.cuda.CUDAGraph | None:
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                step(width)
        except RuntimeError as error:
            _leave_capture(before, self._pool)
            if isinstance(error, torch.OutOfMemoryError):
                self._has_room = False
            else:
                self._captures.usable = False
            self._graphs, self._pool = dict.fromkeys(self._graphs), None
            logger.warning("decoding %sruns without CUDA graphs: %s", "" if self._has_room else "this once ", error)
            return None
        return graph


def _leave_capture(before: torch.cuda.Stream, pool: Any) -> None:
    """What torch leaves undone when a capture fails: its stream stays the current one, and memory goes to its pool, so
    that nothing would be given back by this process any more."""
    torch.cuda.set_stream(before)
    with suppress(RuntimeError, AttributeError):  # it was ended, or this torch ends it in another way
        torch._C._cuda_endAllocateToPool(before.device_index, pool)
