"""One directory, one live process: a file lock that ends with its process, with a number that only grows."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path

from rlhf.errors import RunLockedError

LOCK_FILE = ".lock"
OWNER_SECONDS = 1.0

_held: dict[Path, tuple[int, int]] = {}
"""Claimed directories: (descriptor of the lock, fencing token)."""


def claim(path: Path, *, above: int = 0) -> None:
    """Takes a directory for this process until it ends or gives it back.

    Args:
        above: a fencing token that is known to have been given out; this claim's is larger.

    Raises:
        RunLockedError: a live process has it.
    """
    key = path.resolve()
    if key in _held:
        return
    descriptor = os.open(key / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid, host = _owner(descriptor)
        os.close(descriptor)
        raise RunLockedError(
            f"{path} is in use by another live process (pid {pid} on {host}): wait for it, end it, or set another "
            "run_dir"
        ) from None
    before = os.read(descriptor, 256).decode(errors="replace").split()
    token = 1 + max(above, int(before[2]) if len(before) == 3 and before[2].isdigit() else 0)
    line = f"{os.getpid()} {socket.gethostname()} {token}\n".encode()
    os.pwrite(descriptor, line, 0)
    os.ftruncate(descriptor, len(line))
    _held[key] = (descriptor, token)


def _owner(descriptor: int) -> tuple[str, str]:
    """(pid, host) of the process that holds the lock; one that has just taken it is given a moment to say so."""
    deadline = time.monotonic() + OWNER_SECONDS
    while True:
        words = os.pread(descriptor, 256, 0).decode(errors="replace").split()
        known = len(words) == 3 and (words[1] != socket.gethostname() or Path(f"/proc/{words[0]}").exists())
        if known or time.monotonic() > deadline:
            return (words[0], words[1]) if len(words) >= 2 else ("unknown", "unknown")
        time.sleep(0.02)


def fencing_token(path: Path) -> int:
    """Number of this process's claim; every later claim of the directory has a larger one."""
    return _held[path.resolve()][1]


def release_run_dir(path: Path) -> None:
    """Gives the claim back before the process ends; safe to call twice."""
    held = _held.pop(path.resolve(), None)
    if held is not None:
        os.close(held[0])
