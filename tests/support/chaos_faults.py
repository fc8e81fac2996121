"""Faults that are armed as files and fire once, in whichever process reaches the named state first. Loads no torch."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import ObjectLostError

from rlhf.workers.context import WorkerContext


@dataclass(frozen=True)
class Faults:
    """Armed faults of one run, in a directory beside its run directory.

    A fault is a file named after the state in which it strikes; its text is the number of the signal. The process
    that renames it to ``STATE.fired-PID`` sends itself the signal.
    """

    run_dir: Path

    @property
    def directory(self) -> Path:
        """Where the files are."""
        return self.run_dir.with_name(f"{self.run_dir.name}.faults")

    def arm(self, state: str, signal_number: int = signal.SIGKILL, *, times: int = 1) -> None:
        """Lets the first ``times`` processes that reach the state die or freeze there."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for number in range(times):
            (self.directory / f"{state}.armed-{number}").write_text(str(int(signal_number)))

    def reach(self, state: str) -> None:
        """Called by a worker in a named state; does not return when a fault is armed for it."""
        for path in sorted(self.directory.glob(f"{state}.armed-*")):
            number = path.suffix.removeprefix(".armed-")
            fired = path.with_name(f"{state}.fired-{os.getpid()}-{number}")
            with suppress(FileNotFoundError):  # another worker was quicker
                text = path.read_text()
                path.rename(fired)
                os.kill(os.getpid(), int(text))

    def fired(self) -> dict[str, int]:
        """State with its number -> pid of the process that was hit."""
        found = {}
        for path in self.directory.glob("*.fired-*"):
            pid, number = path.suffix.removeprefix(".fired-").split("-")
            found[f"{path.stem}.{number}"] = int(pid)
        return found

    def struck(self, state: str) -> float:
        """When a fault of this state struck, in seconds since the epoch."""
        (path,) = self.directory.glob(f"{state}.fired-*")
        return path.stat().st_ctime  # of its new name

    def left(self) -> list[str]:
        """Faults that nobody has run into: the test has missed its scenario."""
        return sorted(path.name for path in self.directory.glob("*.armed-*"))


class LightRollout:
    """Keeps the contract of a rollout worker, without a model: answers name the task, the adapter and the process."""

    def __init__(self, context: WorkerContext, draw_seconds: float = 0.0) -> None:
        self.context, self.draw_seconds = context, draw_seconds
        self.faults = Faults(Path(context.run_dir))
        self.faults.reach("build")
        self.held = ""

    def install(self, snapshot: LightHeader) -> tuple[str, float]:
        self.faults.reach("install")
        self.held = snapshot.sha256
        return self.held, 0.0

    def generate(self, tasks: list[Any], sampling: Any, version: int) -> list[tuple[Any, str, int]]:
        self.faults.reach(f"generate-{version}")
        time.sleep(self.draw_seconds)
        return [(task, self.held, os.getpid()) for task in tasks]


class SlowRollout(LightRollout):
    """Draws in many passes with a sign of life at each; the first process of a slow rank takes its time for them.

    Args:
        slow_ranks: ranks whose first process is slow.
        draw_seconds: what a slow process takes for a piece; a replacement takes none.
    """

    PASSES = 100

    def __init__(self, context: WorkerContext, draw_seconds: float, slow_ranks: tuple[int, ...]) -> None:
        super().__init__(context, draw_seconds)
        seen = Path(context.run_dir) / f"rank-{context.rank}.started"
        self.is_slow = context.rank in slow_ranks and not seen.exists()
        seen.touch()

    def generate(self, tasks: list[Any], sampling: Any, version: int) -> list[tuple[Any, str, int]]:
        for _ in range(self.PASSES):
            time.sleep(self.draw_seconds / self.PASSES if self.is_slow else 0)
            self.context.beat()
        return [(task, self.held, os.getpid()) for task in tasks]


@dataclass(frozen=True)
class LightAnswer:
    """What scorers deal out."""

    ids: tuple[int, ...]


class LightScorer:
    """Keeps the contract of a scorer worker, without a model: a score is the number of tokens."""

    def __init__(self, context: WorkerContext) -> None:
        self.faults = Faults(Path(context.run_dir))
        self.faults.reach("build")

    def score_pieces(self, pieces: list[list[LightAnswer]], *ways: list[bool]) -> list[list[list[float]]]:
        self.faults.reach("score")
        return [[[float(len(answer.ids)) for answer in piece]] for piece in pieces]


@dataclass(frozen=True)
class LightHeader:
    """What a fleet looks at."""

    sha256: str


@dataclass(frozen=True)
class LightVersion:
    """Stands where a shipped adapter stands, without tensors: neither side has to import torch for it."""

    header: LightHeader

    def fetch(self, timeout: float) -> LightHeader:
        return self.header


class LostVersion(LightVersion):
    """One whose bytes are gone."""

    def fetch(self, timeout: float) -> LightHeader:
        raise ObjectLostError("a" * 56, None, "")


def light_version(sha256: str) -> Any:
    """An adapter of no tensors."""
    return LightVersion(LightHeader(sha256))
