"""What a worker knows about its place; a plain object, so that workers run in-process in a unit test."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from rlhf.errors import AbandonedError
from rlhf.telemetry.spans import Recorder


@dataclass
class WorkerContext:
    """A worker's place in its group and its way to tell the driver how far it is.

    Attributes:
        role: e.g. ``"sft"``, ``"policy"``, ``"rollout"``.
        rank / num_ranks: index in the group and its size.
        run_dir: the run directory (logs, outputs).
        stop_requested: the driver has asked for a checkpoint and an end after the running step.
        abandoned: nobody waits for the running call any more: it ends at its next sign of progress.
        events: what the worker has emitted and the driver has not yet read.
        last_beat: when it last got on with its work, on this process's monotonic clock.
        spans: what it did from when to when, recorded only while a run is profiled.
    """

    role: str
    rank: int
    num_ranks: int
    run_dir: str
    log_level: str = "INFO"
    stop_requested: bool = False
    abandoned: bool = False
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=10_000))
    last_beat: float = field(default_factory=time.monotonic)
    spans: Recorder = field(default_factory=Recorder)

    def beat(self) -> None:
        """A sign of progress: whoever waits for this worker waits on.

        Raises:
            AbandonedError: nobody does.
        """
        self.last_beat = time.monotonic()
        if self.abandoned:
            raise AbandonedError("another worker was quicker with this piece of work")

    def expect_silence(self, seconds: float) -> None:
        """No sign of progress is due for so long: silence counts after that, or from the next sign."""
        self.last_beat = time.monotonic() + seconds

    def beat_with(self, module: Any) -> None:
        """Every forward pass of a torch module is a sign of progress."""
        module.register_forward_hook(lambda *_: self.beat())

    def emit(self, kind: str, **values: Any) -> None:
        """Tells the driver something: ``kind`` is ``"metrics"``, ``"progress"`` or a stage's own word."""
        self.events.append({"kind": kind, "rank": self.rank, **values})
