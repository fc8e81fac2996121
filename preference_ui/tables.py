"""What the functions of the command line share: a table to print, and a store opened by its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preference_ui.db import Store, open_store

Place = Store | str | Path | None


@dataclass(frozen=True)
class Table:
    """A table of texts to print.

    Attributes:
        notes: lines to show below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: tuple[str, ...] = ()

    def render(self) -> str:
        """Aligned plain text."""
        widths = [max(len(c), *(len(r[i]) for r in self.rows), 0) for i, c in enumerate(self.columns)]
        lines = [self.title] if self.title else []
        for row in (self.columns, *self.rows):
            lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return "\n".join([*lines, *self.notes])


class Opened:
    """Opens a store by path or URL and closes it again; an open one is left open."""

    def __init__(self, place: Place, create: bool = False, migrate: bool = True) -> None:
        self._given = isinstance(place, Store)
        self._store = place if isinstance(place, Store) else open_store(place, create, migrate=migrate)

    def __enter__(self) -> Store:
        return self._store

    def __exit__(self, *_: object) -> None:
        if not self._given:
            self._store.close()
