"""What the sections of the chaos benchmark share: rows of the table, and a Ray runtime with borrowed actors."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Row:
    """One kind of fault and what became of it.

    Attributes:
        injected: faults that struck; their victims are known to be dead. detected: those that were noticed.
        recovered: those after which the run ended as if nothing had happened, or with the error it must end with.
        lost: acknowledged or committed things that are gone, half there or doubled.
        longest_seconds: from the fault to the end of its treatment, the longest one.
    """

    id: str
    fault: str
    injected: int
    detected: int
    recovered: int
    lost: int
    longest_seconds: float | None = None
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """Whether nothing is missing."""
        return self.injected > 0 and self.detected == self.recovered == self.injected and self.lost == 0


Section = Callable[[bool], list[Row] | Iterator[list[Row]]]
"""Takes whether it is to be quick; gives its rows, long ones again and again as far as they are."""


@contextmanager
def folder() -> Iterator[Path]:
    """A directory that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        yield Path(name)


@contextmanager
def runtime_and_pool() -> Iterator[Any]:
    """A private Ray runtime, and actors that serve one run after the other."""
    from rlhf.config import PlacementConfig
    from rlhf.workers.runtime import ray_runtime
    from tests.support.runtime import ActorPool

    with ray_runtime(PlacementConfig(), num_workers=16):
        pool = ActorPool()
        try:
            yield pool
        finally:
            pool.close()


def tiny(directory: Path) -> Path:
    """The two-layer model of the tests."""
    import torch

    from tests.support.tiny import build_model

    torch.set_num_threads(1)
    return build_model(directory / "base")


def seconds_since(began: float) -> float:
    """Rounded wall time."""
    return round(time.monotonic() - began, 3)


def longest(events: list[dict[str, Any]]) -> float | None:
    """The longest time from a fault's detection to its end, detection included."""
    waits: dict[str, float] = {}
    found: list[float] = []
    for event in events:
        if event["event"] == "fault_detected":
            waits[event["fault"]] = event.get("detect_seconds") or 0.0
        if event["event"] in ("fault_resolved", "fault_fatal"):
            found.append(waits.pop(event["fault"], 0.0) + event["recover_seconds"])
    return round(max(found), 3) if found else None
