"""A process's memory while it is profiled: resident pages, and the device's peak where it has one."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from rlhf.telemetry.memory import read_pss_bytes

STATM = Path("/proc/self/statm")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Footprint:
    """Reads this process; a ``Meter`` of ``rlhf.telemetry.spans``.

    On a GPU every reading waits for the device: work is queued there, and a span that ended when the queue was filled
    would have cost nothing. A profiled run is slower by these waits.
    """

    def settle(self) -> None:
        """Waits for the device."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()

    def memory(self) -> dict[str, int]:
        """``rss`` now, and ``gpu``: the most that torch had allocated since the last call."""
        found: dict[str, int] = {}
        if STATM.exists():
            found["rss"] = int(STATM.read_bytes().split()[1]) * PAGE
        if torch.cuda.is_initialized():
            found["gpu"] = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        return found

    def pss(self) -> int | None:
        """Proportional set size; the kernel walks all pages for it, so it is read between steps."""
        return read_pss_bytes(os.getpid())
