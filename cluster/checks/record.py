"""The result of one check."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Record:
    """One line of the doctor.

    Attributes:
        status: ``fail`` stops runs, ``warn`` may slow or surprise them.
        detail: what was found.
        remedy: what to do, empty when nothing is to be done.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The record for programs."""
        return asdict(self)


def ok(name: str, detail: str) -> Record:
    """Nothing to do."""
    return Record(name, "ok", detail)


def warn(name: str, detail: str, remedy: str) -> Record:
    """Runs go on, with a drawback."""
    return Record(name, "warn", detail, remedy)


def fail(name: str, detail: str, remedy: str) -> Record:
    """Runs would stop or be unsafe."""
    return Record(name, "fail", detail, remedy)


def size(value: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
