"""What a run directory says of its run while it goes on: state, progress, figures, last events. Loads no torch."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlhf.errors import DataError
from rlhf.telemetry.metrics import METRICS_FILE

State = Literal["running", "finished", "stopped"]
PHASES = ("act", "judge", "learn", "share")
QUIET_SECONDS = 600.0
"""A run whose lock cannot be asked counts as stopped when it has written nothing for so long."""
MAX_LOG_BYTES = 65_536
MAX_SAMPLE_BYTES = 2_000_000
_LINE = re.compile(r"(?P<time>\d{4}-\d\d-\d\dT[\d:.]+Z) (?P<level>[A-Z]+) (?P<who>\S+) \S+: (?P<text>.*)")

Record = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """One line of a log."""

    time: str
    level: str
    who: str
    text: str


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        total: steps of the whole run, or None while nothing says.
        seconds_per_step: mean over the last steps, or None before the second.
        eta_seconds: time left, or None when unknown or over.
    """

    step: int
    total: int | None
    seconds_per_step: float | None
    eta_seconds: float | None


class MetricsTail:
    """A metrics file read as it grows; each call reads only what is new.

    A file that was replaced or cut (a resumed run rewinds it) is read anew. A torn last line waits for its end.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.records: list[Record] = []
        self._offset, self._inode = 0, -1

    def read(self) -> list[Record]:
        """All records so far, in file order; none while the file is not there."""
        try:
            with self.path.open("rb") as handle:
                found = os.fstat(handle.fileno())
                if found.st_ino != self._inode or found.st_size < self._offset:
                    self.records, self._offset, self._inode = [], 0, found.st_ino
                handle.seek(self._offset)
                data = handle.read()
        except FileNotFoundError:
            return self.records
        whole, separator, _ = data.rpartition(b"\n")
        self._offset += len(whole) + len(separator)
        self.records += [record for record in map(_object, whole.split(b"\n")) if record is not None]
        return self.records


@dataclass
class RunView:
    """A run directory, looked at again and again.

    Attributes:
        config: the resolved config, empty when the run wrote none.
        summary: what a finished run wrote.
        planned_steps: what the run means to take, once it has counted its rows; None before.
    """

    path: Path
    stage: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    state: State = "stopped"
    records: list[Record] = field(default_factory=list)
    started: str = ""
    planned_steps: int | None = None

    def __post_init__(self) -> None:
        self._tail = MetricsTail(self.path / METRICS_FILE)
        self.refresh()

    def refresh(self) -> RunView:
        """Reads what is new."""
        described = _json(self.path / "config.json")
        self.config = described.get("config", {})
        self.started = str(described.get("started", ""))
        self.planned_steps = described.get("num_steps")
        self.summary = _json(self.path / "summary.json")
        self.records = self._tail.read()
        last = self.records[-1] if self.records else {}
        self.stage = str(described.get("stage") or last.get("stage") or self.summary.get("stage") or "")
        self.state = self._state()
        return self

    def series(self, key: str, stage: str | None = None) -> list[tuple[int, float]]:
        """(step, value) of one metric; a step written twice counts as written last."""
        found: dict[int, float] = {}
        for record in self.records:
            value = record.get(key)
            if isinstance(value, int | float) and not isinstance(value, bool) and stage in (None, record.get("stage")):
                found[int(record.get("step", 0))] = float(value)
        return sorted(found.items())

    def last(self, key: str) -> float | None:
        """The latest value of a metric."""
        series = self.series(key)
        return series[-1][1] if series else None

    @property
    def progress(self) -> Progress:
        """Steps done, and the time left while the run goes on."""
        steps = [r for r in self.records if "loss" in r or "score_mean" in r] or self.records
        step = int(steps[-1].get("step", 0)) if steps else 0
        if self.stage == "ppo" and steps:
            step += 1  # its steps are numbered from 0
        total = self._total()
        times = [(int(r["step"]), float(r["time"])) for r in steps[-20:] if "time" in r and "step" in r]
        pace = None
        if times and times[-1][0] > times[0][0]:
            pace = max(0.0, (times[-1][1] - times[0][1]) / (times[-1][0] - times[0][0]))
        left = None
        if self.state == "running" and pace is not None and total is not None:
            left = max(0.0, pace * (total - step))
        return Progress(step, total, pace, left)

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of the last step by act, where the stage has acts."""
        last = next((r for r in reversed(self.records) if "seconds.act" in r), {})
        return {name: float(last[f"seconds.{name}"]) for name in PHASES if last.get(f"seconds.{name}") is not None}

    @property
    def tokens_per_second(self) -> float | None:
        """Response tokens per second of a PPO step; trained tokens per second otherwise."""
        phases, length = self.phases, self.last("response_tokens_mean")
        batch = self.config.get("batch", {})
        if phases and length is not None and "prompts_per_step" in batch:
            sequences = batch["prompts_per_step"] * batch.get("responses_per_prompt", 1)
            return sequences * length / max(1e-9, sum(phases.values()))
        counted = [r for r in self.records if "num_tokens" in r and "time" in r][-20:]
        if len(counted) < 2 or counted[-1]["time"] <= counted[0]["time"]:
            return None
        return (counted[-1]["num_tokens"] - counted[0]["num_tokens"]) / (counted[-1]["time"] - counted[0]["time"])

    def events(self, limit: int = 6) -> list[Event]:
        """The last lines of all logs by time, equal texts of several ranks as one; errors stay in sight."""
        by_text: dict[str, Event] = {}
        for path in sorted((self.path / "logs").glob("*.log")):
            for event in filter(None, map(_event, _last_lines(path))):
                if event.text.strip():
                    by_text[event.text] = max(event, by_text.get(event.text, event), key=lambda e: e.time)
        found = sorted(by_text.values(), key=lambda e: e.time)
        grave = [e for e in found if e.level in ("ERROR", "CRITICAL")][-limit:]
        rest = [e for e in found if e not in grave]
        return sorted([*grave, *rest[max(0, len(rest) - limit + len(grave)) :]], key=lambda e: e.time)

    def samples(self, limit: int = 50) -> list[Record]:
        """The last drawn responses, newest first."""
        for name in ("rollouts.jsonl", "samples.jsonl", "candidates.jsonl"):
            lines = _last_lines(self.path / name, MAX_SAMPLE_BYTES)
            rows = [row for row in (_object(line.encode()) for line in lines[-limit:]) if row is not None]
            if rows:
                return rows[::-1]
        return []

    def _total(self) -> int | None:
        """What a finished run took; else what a run says that it will take. ``max_steps`` is a bound, not a number."""
        for value in (self.summary.get("num_steps"), self.planned_steps, self.config.get("num_steps")):
            if isinstance(value, int):
                return value
        return None

    def _state(self) -> State:
        if self.summary or (self.path / "run.json").is_file():
            return "finished"
        held = _lock_held(self.path / ".lock")
        if held is None:  # no lock to ask: another kind of stage, or another host
            return "running" if time.time() - _last_written(self.path) < QUIET_SECONDS else "stopped"
        return "running" if held else "stopped"


def find_runs(root: str | Path, depth: int = 3) -> list[Path]:
    """Run directories below a root, newest first; a run is known by its metrics, config or summary file."""
    found: dict[Path, float] = {}
    base = Path(root)
    for folder, names, files in os.walk(base):
        here = Path(folder)
        names[:] = [] if len(here.relative_to(base).parts) >= depth else sorted(n for n in names if n[0] != ".")
        known = {METRICS_FILE, "config.json", "summary.json"}.intersection(files)
        if METRICS_FILE in known or len(known) == 2:
            found[here] = max((here / name).stat().st_mtime for name in known)
    return sorted(found, key=lambda path: (-found[path], str(path)))


def open_run(path: str | Path) -> RunView:
    """A view of a run directory.

    Raises:
        DataError: there is no run.
    """
    return RunView(check_run(path))


def check_run(path: str | Path) -> Path:
    """The directory, if it holds a run.

    Raises:
        DataError: there is no run.
    """
    where = Path(path)
    if not where.is_dir():
        raise DataError(f"{where} is not a directory: give a run directory, such as runs/ppo")
    if not any((where / name).exists() for name in (METRICS_FILE, "config.json", "summary.json", "run.json")):
        raise DataError(f"{where} holds no run: none of {METRICS_FILE}, config.json, summary.json is there")
    return where


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Values as a line of blocks, averaged down to a width; empty for no values."""
    known = [v for v in values if v == v and abs(v) != float("inf")]
    if not known:
        return ""
    size = max(1, -(-len(known) // width))
    means = [statistics.fmean(known[i : i + size]) for i in range(0, len(known), size)]
    low, high = min(means), max(means)
    if high - low < 1e-12:
        return "▄" * len(means)
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (value - low) / (high - low))] for value in means)


def _lock_held(path: Path) -> bool | None:
    """Whether a live process of this machine holds a run's lock; None without a lock file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _last_written(path: Path) -> float:
    """Seconds since 1970; 0 for a run that is gone."""
    times = [0.0]
    for file in (path, path / METRICS_FILE, path / "config.json"):
        with contextlib.suppress(OSError):
            times.append(file.stat().st_mtime)
    return max(times)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _object(line: bytes) -> Record | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _last_lines(path: Path, limit: int = MAX_LOG_BYTES) -> list[str]:
    try:
        with path.open("rb") as handle:
            size = handle.seek(0, os.SEEK_END)
            handle.seek(max(0, size - limit))
            data = handle.read(limit)
    except OSError:
        return []
    lines = data.decode("utf-8", "replace").splitlines()
    return lines[1:] if size > limit else lines


def _event(line: str) -> Event | None:
    found = _LINE.match(line)
    return Event(found["time"], found["level"], found["who"], found["text"]) if found else None
