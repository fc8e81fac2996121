"""Damage to checkpoints, one piece at a time, taken back afterwards; and many processes that want one directory."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlhf.engine.checkpoint.store import CheckpointStore
from rlhf.errors import CheckpointError, RunLockedError
from tests.support.chaos_store import write_commit

Damage = Callable[[Path], None]


@dataclass
class Detection:
    """What was damaged, and what went through unseen."""

    injected: int = 0
    detected: int = 0
    fell_back: int = 0
    longest_seconds: float = 0.0

    def missed(self) -> int:
        """Damages after which the newest commit was taken as whole."""
        return self.injected - self.detected


def flip_a_bit(rng: random.Random) -> Damage:
    """One bit of one file, all bits of all files equally likely."""

    def damage(commit: Path) -> None:
        paths = sorted(p for p in commit.rglob("*") if p.is_file())
        path = rng.choices(paths, weights=[p.stat().st_size for p in paths])[0]
        data = bytearray(path.read_bytes())
        bit = rng.randrange(8 * len(data))
        data[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(data)

    return damage


def cut(share: float, rng: random.Random) -> Damage:
    """One file cut to a share of its length."""

    def damage(commit: Path) -> None:
        path = rng.choice(sorted(p for p in commit.rglob("*") if p.is_file()))
        os.truncate(path, int(path.stat().st_size * share))

    return damage


def remove_a_file(commit: Path) -> None:
    next(p for p in sorted(commit.rglob("*.pt"))).unlink()


def add_a_file(commit: Path) -> None:
    (commit / "policy" / "adapter_model.bin").write_bytes(b"from elsewhere")


def mix_two_steps(commit: Path) -> None:
    """A shard of the step before, of the very same size."""
    other = sorted(commit.parent.glob("step-*"))[-2]
    shutil.copy(other / "policy" / "rank-0.pt", commit / "policy" / "rank-0.pt")


def rename_an_older_commit(commit: Path) -> None:
    """A whole commit under the name of a later step."""
    other = sorted(commit.parent.glob("step-*"))[-2]
    shutil.rmtree(commit)
    shutil.copytree(other, commit)


def detect(store: CheckpointStore, damages: Iterator[Damage] | list[Damage]) -> Detection:
    """Damages the newest commit, asks for the newest whole one, and puts the commit back."""
    newest, before = store.steps()[-1], store.steps()[-2]
    commit, found = store.path(newest), Detection()
    spare = store.directory.parent / "spare"
    shutil.copytree(commit, spare, dirs_exist_ok=True)
    for damage in damages:
        damage(commit)
        found.injected += 1
        began = time.monotonic()
        answer = store.newest()
        found.longest_seconds = round(max(found.longest_seconds, time.monotonic() - began), 4)
        if answer is not None and answer[1].step != newest and answer[2]:
            found.detected += 1
            found.fell_back += answer[1].step == before
        shutil.rmtree(commit)
        shutil.copytree(spare, commit)
    return found


def three_commits(directory: Path, size: int = 600) -> CheckpointStore:
    """Steps 1, 2, 3."""
    store = CheckpointStore(directory)
    for step in (1, 2, 3):
        write_commit(store, step, size=size, metric=0.25)
    return store


@contextmanager
def small_disk(path: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of this size; needs the right to mount.

    Raises:
        PermissionError: without that right.
    """
    path.mkdir(parents=True, exist_ok=True)
    if os.system(f"mount -t tmpfs -o size={mebibytes}m tmpfs {path} 2>/dev/null"):
        raise PermissionError("mounting needs a right that this user lacks")
    try:
        yield path
    finally:
        os.system(f"umount {path}")


def race(run_dir: str, count: str = "20") -> None:
    """Forks processes that all claim one run directory at once; prints what became of each as JSON.

    The winner stays alive until all others have answered.
    """
    from rlhf.config import SftConfig, build_config
    from rlhf.config.claim import fencing_token
    from rlhf.stages.run_dir import prepare_run_dir

    tree = {"run_dir": run_dir, "model": {"name": "m"}, "data": {"train": "t.jsonl"}}
    config = build_config(SftConfig, tree, source="race")
    start_read, start_write = os.pipe()
    end_read, end_write = os.pipe()
    answer_read, answer_write = os.pipe()
    pids = []
    for _ in range(int(count)):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        os.close(start_write)
        os.close(end_write)
        os.read(start_read, 1)  # end of file: all go at once
        try:
            path = prepare_run_dir(config)
            answer = {"won": True, "pid": os.getpid(), "token": fencing_token(path)}
        except RunLockedError as error:
            answer = {"won": False, "pid": os.getpid(), "code": error.exit_code, "message": str(error)}
        except CheckpointError as error:
            answer = {"won": False, "pid": os.getpid(), "code": error.exit_code, "message": str(error)}
        os.write(answer_write, json.dumps(answer).encode() + b"\n")
        os.read(end_read, 1)
        os._exit(0)
    os.close(start_write)
    received = b""
    while received.count(b"\n") < int(count):
        received += os.read(answer_read, 1 << 16)
    os.close(end_write)
    for pid in pids:
        os.waitpid(pid, 0)
    print(json.dumps([json.loads(line) for line in received.splitlines()]))


if __name__ == "__main__":
    race(*sys.argv[1:])
