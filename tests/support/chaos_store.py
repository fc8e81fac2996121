"""SIGKILL for a process that commits checkpoints: at random instants, and at every named instant of a commit.

Run as a program it forks the processes that die: a fork costs a millisecond, an interpreter a second.

    python -m tests.support.chaos_store random DIRECTORY ROUNDS
    python -m tests.support.chaos_store named DIRECTORY
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from rlhf.engine.checkpoint.manifest import Manifest
from rlhf.engine.checkpoint.store import CheckpointStore
from rlhf.errors import CheckpointError

INSTANTS = ("opened", "files", "manifest", "renamed", "hint", "latest", "doomed", "pruned")
BEFORE_THE_COMMIT = ("opened", "files", "manifest")
FILES = ("policy/weights.pt", "policy/rank-0.pt", "critic/weights.pt", "rank-0.json", "rank-1.json")
KEEP_LAST = 2
PATIENCE_SECONDS = 60.0


@dataclass
class Kills:
    """What became of the commits of processes that were killed.

    Attributes:
        acknowledged: commits whose end the process reported.
        unreadable: starts without a whole commit. lost: acknowledged, and not there. mixed: files of two steps.
        leftovers: entries that were neither commits nor the hint after the clean-up of the next start.
    """

    killed: int = 0
    acknowledged: int = 0
    unreadable: int = 0
    lost: int = 0
    mixed: int = 0
    leftovers: int = 0
    temporaries_cleaned: int = 0
    longest_recovery_seconds: float = 0.0


def content(step: int, name: str, size: int) -> bytes:
    """Bytes that belong to this file of this step and to no other."""
    return hashlib.shake_256(f"{step}/{name}".encode()).digest(size)


def write_commit(store: CheckpointStore, step: int, *, size: int = 4096, metric: float | None = None) -> Path:
    """One commit of several files."""
    temporary = store.open()
    for name in FILES:
        path = temporary / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content(step, name, size))
    return store.commit(temporary, step, stage="ppo", identity={"data": "d"}, metric=metric, state={"step": step})


def is_mixed(path: Path, manifest: Manifest) -> bool:
    """Whether a commit holds anything that is not its step's."""
    wrong = [name for name in FILES if (path / name).read_bytes() != content(manifest.step, name, _size(path))]
    return bool(wrong) or manifest.state != {"step": manifest.step} or path.name != f"step-{manifest.step:08d}"


def strangers(directory: Path) -> list[str]:
    """Entries that are neither commits nor the hint."""
    return [p.name for p in directory.iterdir() if not p.name.startswith("step-") and p.name != "latest"]


def random_kills(directory: Path, rounds: int, *, seed: int = 0, size: int = 32768) -> Kills:
    """Each round a new process goes on committing and is killed at an instant that nobody chose."""
    found, rng = Kills(), random.Random(seed)
    acks = directory.parent / "acknowledged"
    acks.touch()
    for number in range(rounds):
        before = acks.stat().st_size
        pid = _fork(lambda number=number: _commit_for_ever(directory, acks, number + 1, size))  # type: ignore[misc]
        _wait_for(lambda before=before: acks.stat().st_size > before)  # type: ignore[misc]
        time.sleep(rng.random() * 0.08)
        found.killed += _kill(pid)
        _account(found, directory, acks)
    return found


def kill_at(directory: Path, instant: str, *, size: int = 4096) -> tuple[int, int | None, list[str]]:
    """Kills a process that has reached ``instant`` of its last commit; (the commit before, what is found, left over).

    Raises:
        RuntimeError: the process did not get there, or did not die.
    """
    store = CheckpointStore(directory, token=1, keep_last=KEEP_LAST, keep_best=False)
    for step in range(1, KEEP_LAST + 1):
        write_commit(store, step, size=size)
    read, write = os.pipe()

    def child() -> None:
        own = CheckpointStore(directory, token=2, keep_last=KEEP_LAST, keep_best=False)

        def reached(name: str) -> None:
            if name == instant:
                os.write(write, b"x")
                signal.pause()

        own.reached = reached
        write_commit(own, KEEP_LAST + 1, size=size)

    pid = _fork(child)
    os.close(write)
    announced = os.read(read, 1)
    os.close(read)
    if announced != b"x" or not _kill(pid):
        raise RuntimeError(f"no process stood at {instant!r} when it was to be killed")
    again = CheckpointStore(directory, token=3, keep_last=KEEP_LAST, keep_best=False)
    again.clean()
    newest = again.newest()
    if newest is None or is_mixed(newest[0], newest[1]):
        return KEEP_LAST, None, strangers(directory)
    return KEEP_LAST, newest[1].step, strangers(directory)


def _size(path: Path) -> int:
    return (path / FILES[0]).stat().st_size


def _account(found: Kills, directory: Path, acks: Path) -> None:
    """What the next start sees: clean-up, then the newest whole commit."""
    began = time.monotonic()
    store = CheckpointStore(directory, keep_last=KEEP_LAST, keep_best=False)
    found.temporaries_cleaned += len(store.clean())
    found.leftovers += len(strangers(directory))
    acknowledged = [int(line) for line in acks.read_text().split("\n")[:-1]]
    found.acknowledged = len(acknowledged)
    try:
        newest = store.newest()
    except CheckpointError:
        found.unreadable += 1
        return
    found.longest_recovery_seconds = max(found.longest_recovery_seconds, round(time.monotonic() - began, 3))
    if newest is None or newest[2]:
        found.unreadable += 1
        return
    found.lost += newest[1].step < max(acknowledged, default=0)
    found.mixed += any(is_mixed(store.path(step), store_manifest(store, step)) for step in store.steps())


def store_manifest(store: CheckpointStore, step: int) -> Manifest:
    """The manifest of a commit."""
    from rlhf.engine.checkpoint.manifest import verify

    return verify(store.path(step))


def _commit_for_ever(directory: Path, acks: Path, token: int, size: int) -> None:
    store = CheckpointStore(directory, token=token, keep_last=KEEP_LAST, keep_best=False)
    store.clean()
    newest = store.newest()
    step = newest[1].step if newest else 0
    descriptor = os.open(acks, os.O_WRONLY | os.O_APPEND)
    while True:
        step += 1
        write_commit(store, step, size=size)
        os.write(descriptor, f"{step}\n".encode())


def _fork(action: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        action()
    finally:
        os._exit(9)


def _kill(pid: int) -> bool:
    """True when the process was alive until this signal, and is dead of it."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("the writer made no commit")
        time.sleep(0.001)


def main(kind: str, directory: str, rounds: str = "40") -> None:
    """Prints the findings as one JSON line."""
    if kind == "random":
        print(json.dumps(asdict(random_kills(Path(directory), int(rounds)))))
        return
    print(json.dumps({name: kill_at(Path(directory) / name, name) for name in INSTANTS}))


if __name__ == "__main__":
    main(*sys.argv[1:])
