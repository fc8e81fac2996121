"""Voting processes killed one after the other; prints how many died at work.

Run as ``vote_kills.py STORE ACKS ROUNDS``: it forks the processes that die, because a fork costs milliseconds and an
interpreter with its libraries half a second. Each opens the store itself, with connections of its own.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import psycopg  # noqa: F401 - the driver, so that no child has to load it
from vote_writer import main as vote

ENOUGH_VOTES = 3
PATIENCE_SECONDS = 60.0


def acknowledged(acks: Path) -> int:
    """How many votes are."""
    return acks.read_bytes().count(b"\n") if acks.exists() else 0


def killed_at_work(url: str, acks: Path, number: int, rng: random.Random) -> bool:
    """Lets a process vote a few times and kills it at an instant that nobody chose; False when it had ended before."""
    before = acknowledged(acks)
    pid = os.fork()
    if not pid:
        try:
            vote(url, str(acks), [f"w{number % 3}", f"v{number % 3}"])
        finally:
            os._exit(9)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while acknowledged(acks) < before + ENOUGH_VOTES and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(rng.random() * 0.05)
    os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is still this process's
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def main(url: str, acks: str, rounds: str) -> None:
    rng = random.Random(5)
    print(sum(killed_at_work(url, Path(acks), number, rng) for number in range(int(rounds))))


if __name__ == "__main__":
    main(*sys.argv[1:])
