"""Steps of decoding as CUDA graphs: a step of a few rows is a thousand small kernels, each of which waits for Python.

A step is captured once per number of slots and of columns, and then replayed. It reads and writes the same tensors
every time; nothing in it may wait for the GPU or depend on a value that is there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)


class StepGraphs:
    """Graphs of one run of a decoder, whose tensors they hold.

    The first step of a shape runs as it is, so that libraries are ready and kernels compiled; the second is captured.
    What cannot be captured runs as it is from then on, which is said once.
    """

    def __init__(self) -> None:
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph | None] = {}
        self._usable = True

    @property
    def num_captured(self) -> int:
        """How many shapes are replayed."""
        return sum(graph is not None for graph in self._graphs.values())

    def run(self, step: Callable[[int], None], num_slots: int, width: int) -> None:
        """Does ``step(width)`` for so many slots."""
        key = (num_slots, width)
        if not self._usable or key not in self._graphs:
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
        graph = torch.cuda.CUDAGraph()
        pool = next((known.pool() for known in self._graphs.values() if known is not None), None)
        try:
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                step(width)
        except RuntimeError as error:
            self._usable = False
            logger.warning("decoding runs without CUDA graphs: %s", error)
            return None
        return graph
