"""Faults and what became of them, one JSON line each: ``events.jsonl`` in the run directory."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.telemetry.redaction import redact_value

EVENTS_FILE = "events.jsonl"


@dataclass
class EventLog:
    """Appends events; every detected fault ends in exactly one ``fault_resolved`` or ``fault_fatal``.

    Attributes:
        counts: events written by this process, by name.
    """

    run_dir: Path
    counts: dict[str, int] = field(default_factory=dict)
    _open: dict[str, float] = field(default_factory=dict)

    def write(self, event: str, **fields: Any) -> None:
        """One line; a single write call, so that a kill tears at most the last line."""
        self.counts[event] = self.counts.get(event, 0) + 1
        plain = {name: redact_value(value) for name, value in fields.items()}  # before JSON escapes what it looks for
        line = json.dumps({"time": round(time.time(), 3), "pid": os.getpid(), "event": event, **plain}) + "\n"
        with (self.run_dir / EVENTS_FILE).open("a", encoding="utf-8") as handle:
            handle.write(line)

    def fault_detected(self, fault: str, *, detect_seconds: float | None = None, **fields: Any) -> None:
        """Something broke; ``detect_seconds`` is how long the run had waited for it when that was noticed.

        A fault that has not ended is on record already.
        """
        if fault in self._open:
            return
        self._open[fault] = time.monotonic()
        self.write("fault_detected", fault=fault, detect_seconds=detect_seconds, **fields)

    def fault_resolved(self, fault: str, **fields: Any) -> None:
        """The run goes on without loss."""
        self._close("fault_resolved", fault, fields)

    def fault_fatal(self, fault: str, **fields: Any) -> None:
        """The run stops because of it."""
        self._close("fault_fatal", fault, fields)

    def _close(self, event: str, fault: str, fields: dict[str, Any]) -> None:
        began = self._open.pop(fault, None)
        if began is not None:
            self.write(event, fault=fault, recover_seconds=round(time.monotonic() - began, 3), **fields)


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """All whole lines; a torn last one is left out."""
    path = run_dir / EVENTS_FILE
    if not path.is_file():
        return []
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
