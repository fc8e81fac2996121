"""Live progress of a stage: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from rlhf.telemetry.console import format_figure, get_console

PLAIN_SECONDS = 10.0


class StageProgress:
    """Shows one stage: its name, a bar, step/total, elapsed time, time left and a few live figures.

    Not on a terminal, it prints a plain line at the first update, at least every `plain_seconds` even while
    no update comes, and at the end.

    Args:
        stage: the name shown.
        total: the last step, or None while it is unknown.
        console: the shared console by default.
        plain_seconds: pace of the plain lines.
    """

    def __init__(
        self,
        stage: str,
        total: int | None = None,
        *,
        console: Console | None = None,
        plain_seconds: float = PLAIN_SECONDS,
    ) -> None:
        self.stage = stage
        self.total = total
        self.step = 0
        self._figures: dict[str, object] = {}
        self._console = console or get_console()
        self._plain_seconds = plain_seconds
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._progress: Progress | None = None
        self._started = self._last_line = time.monotonic()
        self._first_step: tuple[int, float] | None = None

    def __enter__(self) -> StageProgress:
        self._started = self._last_line = time.monotonic()
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold cyan]{task.fields[stage]}", justify="left"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("[dim]{task.fields[clock]}"),
                TextColumn("{task.fields[figures]}", markup=False),
                console=self._console,
            )
            self._task = self._progress.add_task("", total=self.total, stage=f"{self.stage:<12}", clock="", figures="")
            self._progress.start()
        self._thread = threading.Thread(target=self._tick, name=f"progress-{self.stage}", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        if self._thread:
            self._thread.join()
        with self._lock:
            if self._progress:
                self._refresh()
                self._progress.stop()
            else:
                self._print_line(f"stopped by {kind.__name__}" if kind else "done")

    def update(self, step: int, /, total: int | None = None, **figures: object) -> None:
        """Moves to `step`; figures shown so far stay until they are given anew.

        Args:
            step: steps completed.
            total: the last step, where it became known or changed.
            **figures: a few numbers worth watching, e.g. ``loss=0.7``.
        """
        with self._lock:
            self.step = step
            self.total = self.total if total is None else total
            self._figures.update(figures)
            is_first = self._first_step is None
            if self._first_step is None:
                self._first_step = (step, time.monotonic())
            if self._progress:
                self._refresh()
            elif is_first or time.monotonic() - self._last_line >= self._plain_seconds:
                self._print_line()

    def note(self, text: str) -> None:
        """Prints one line that stays, above the bar."""
        self._console.print(Text(f"{self.stage}: {text}"), soft_wrap=True)

    def eta_seconds(self) -> float | None:
        """Time left at the pace since the first update, or None before there is a pace."""
        if self._first_step is None or self.total is None or self.step >= self.total:
            return None
        first, moment = self._first_step
        # Pace from the first update on: what comes before it (loading, starting workers) is not repeated.
        done, spent = self.step - first, time.monotonic() - moment
        if done <= 0:
            done, spent = self.step, time.monotonic() - self._started
        return spent / done * (self.total - self.step) if done > 0 else None

    def _clock(self) -> str:
        elapsed = format_seconds(time.monotonic() - self._started)
        eta = self.eta_seconds()
        return elapsed if eta is None else f"{elapsed} · {format_seconds(eta)} left"

    def _refresh(self) -> None:
        if self._progress:
            self._progress.update(
                self._task,
                completed=self.step,
                total=self.total,
                clock=self._clock(),
                figures=format_figures(self._figures),
            )

    def _print_line(self, ending: str = "") -> None:
        self._last_line = time.monotonic()
        count = f"{self.step}/{self.total}" if self.total is not None else str(self.step)
        parts = [f"{self.stage:<12} {count}", self._clock(), format_figures(self._figures), ending]
        self._console.print(Text("  ".join(part for part in parts if part)), soft_wrap=True)

    def _tick(self) -> None:
        pace = 0.5 if self._progress else min(1.0, self._plain_seconds / 4)
        while not self._stopped.wait(pace):
            with self._lock:
                if self._progress:
                    self._refresh()
                elif time.monotonic() - self._last_line >= self._plain_seconds:
                    self._print_line()


def stage_progress(
    stage: str,
    total: int | None = None,
    *,
    console: Console | None = None,
    plain_seconds: float = PLAIN_SECONDS,
) -> StageProgress:
    """Progress of one stage: ``with stage_progress("SFT", total=100) as p: p.update(1, loss=2.3)``."""
    return StageProgress(stage, total, console=console, plain_seconds=plain_seconds)


def format_figures(figures: Mapping[str, object]) -> str:
    """``loss 0.71 · kl 2.10``"""
    return " · ".join(f"{key} {format_figure(value)}" for key, value in figures.items())


def format_seconds(seconds: float) -> str:
    """``8s``, ``2m05s``, ``1h02m``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
