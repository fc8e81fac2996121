"""How browsers reach the board, who may read it, and which directories it may read."""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from starlette.requests import HTTPConnection

from preference_ui.app.address import Address
from rlhf.telemetry.runs import RunView, find_runs

READER = "reader"
# All viewers look at one walk over the directories for so long; a new run appears that much later.
NAMES_SECONDS = 3.0


@dataclass(frozen=True)
class BoardSite:
    """One running board.

    Attributes:
        root: the directory whose runs are shown; nothing outside it is ever opened.
        address: where browsers reach it.
        token: what the printed link carries and the cookie holds.
    """

    root: Path
    address: Address
    token: str
    _views: dict[str, RunView] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _names: dict[str, Path] = field(default_factory=dict, repr=False)
    _walked: list[float] = field(default_factory=list, repr=False)
    _walk_lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def link(self) -> str:
        """The address that lets its reader in."""
        return f"{self.address.url}/login?token={self.token}"

    @property
    def cookie(self) -> str:
        """Name of the cookie that holds the token."""
        return self.address.cookie("rlhf-board", "rlhf_board")

    def reader(self, connection: HTTPConnection) -> str | None:
        """Who sent a request: the reader, or nobody."""
        given = connection.cookies.get(self.cookie, "")
        return READER if self.lets_in(given) else None

    def lets_in(self, token: str) -> bool:
        """Whether a token is the right one."""
        return secrets.compare_digest(token.encode(), self.token.encode())

    def names(self) -> list[str]:
        """Names of all runs, newest first: their paths below the root. May be ``NAMES_SECONDS`` old."""
        with self._walk_lock:
            if not self._walked or monotonic() - self._walked[0] >= NAMES_SECONDS:
                self._walked[:] = [monotonic()]
                found = [path for path in find_runs(self.root) if self._is_inside(path)]
                self._names.clear()
                self._names.update((path.relative_to(self.root).as_posix(), path) for path in found)
            return list(self._names)

    def view(self, name: str | None) -> RunView | None:
        """The run of a name, with what is new read; None for anything that is no run below the root."""
        if not name or name not in self.names() or not self._is_inside(self.root / name):
            return None
        with self._lock:
            found = self._views.get(name)
            if found is None:
                self._views[name] = found = RunView(self.root / name)
            return found.refresh()

    def _is_inside(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self.root)
