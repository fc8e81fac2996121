"""Spans: what a process did from when to when, and its memory at the end. Off by default, and then next to free.

Times are nanoseconds since 1970 by the host's clock, so spans of all processes of a host share one axis.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

MAX_SPANS = 200_000
"""Kept by a process that nobody asks; the oldest go first."""
_NOTHING: AbstractContextManager[None] = nullcontext()


class Span(NamedTuple):
    """One span.

    Attributes:
        start / end: nanoseconds since 1970.
        memory: bytes by name (``rss``, ``gpu``), largest of those read within this span and none within it.
    """

    name: str
    start: int
    end: int
    memory: dict[str, int]


class Recorded(NamedTuple):
    """What a process hands over.

    Attributes:
        done: spans that have ended since it was last asked.
        running: spans that have not ended, up to now; they will come again.
        pss: bytes of memory, shared pages divided by their users; None where the system does not tell.
    """

    done: list[Span]
    running: list[Span]
    pss: int | None


class Meter(Protocol):
    """Reads a process's memory."""

    def settle(self) -> None:
        """Waits until the device has done what it was given: only then has the time passed."""

    def memory(self) -> dict[str, int]:
        """Bytes by name; a peak counts from the last call on."""

    def pss(self) -> int | None:
        """Of the whole process; slow."""


class Recorder:
    """Records spans of one thread; another thread may ask for them."""

    def __init__(self) -> None:
        self._meter: Meter | None = None
        self._open: list[_Open] = []
        self._done: deque[Span] = deque(maxlen=MAX_SPANS)

    @property
    def on(self) -> bool:
        """Whether spans are recorded."""
        return self._meter is not None

    def switch(self, meter: Meter | None) -> None:
        """Records from now on, or no longer for None."""
        self._meter = meter
        self._done.clear()

    def span(self, name: str) -> AbstractContextManager[None]:
        """Records the time for which the context is open; spans nest."""
        return _NOTHING if self._meter is None else _Open(self, self._meter, name)

    def take(self) -> Recorded:
        """Hands over what was recorded; meant to be called between two pieces of work, not within one."""
        now = time.time_ns()
        running = [Span(one.name, one.start, now, {}) for one in list(self._open) if one.start]
        done = [self._done.popleft() for _ in range(len(self._done))]
        return Recorded(done, running, None if self._meter is None else self._meter.pss())


class _Open(AbstractContextManager[None]):
    """A span that has not ended."""

    def __init__(self, recorder: Recorder, meter: Meter, name: str) -> None:
        self._recorder, self._meter = recorder, meter
        self.name, self.start = name, 0
        self._memory: dict[str, int] = {}

    def __enter__(self) -> None:
        around = self._recorder._open
        self._meter.settle()
        if around:
            around[-1]._saw(self._meter.memory())
        around.append(self)
        self.start = time.time_ns()

    def __exit__(self, *_: object) -> None:
        self._meter.settle()
        end = time.time_ns()
        self._saw(self._meter.memory())
        self._recorder._open.remove(self)
        self._recorder._done.append(Span(self.name, self.start, end, self._memory))

    def _saw(self, found: dict[str, int]) -> None:
        for name, size in found.items():
            self._memory[name] = max(size, self._memory.get(name, 0))
