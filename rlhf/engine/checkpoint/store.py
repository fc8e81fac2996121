"""The checkpoints of one run: written beside, renamed into place, pruned, found again. Loads neither torch nor ray.

Order of a commit: files into ``.tmp-*`` -> fsync each -> manifest with every sha256 -> fsync -> rename to ``step-N``
-> fsync the parent -> ``latest`` as a hint -> prune. The name of the directory is the commit: whatever is killed at
whatever instant, a directory called ``step-N`` is whole.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.engine.checkpoint.manifest import MANIFEST_FILE, Manifest, describe_files, read_manifest, verify
from rlhf.errors import CheckpointError

logger = logging.getLogger(__name__)

LATEST_FILE = "latest"
HEADROOM = 1.2
"""Free space wanted before a commit, in sizes of the last one."""
PROBE_BYTES = 1 << 20
_STEP = re.compile(r"step-(\d{8})")
Failpoint = Callable[[str], None]


def _nothing(_: str) -> None:
    """Tests put a kill here."""


@dataclass
class CheckpointStore:
    """Commits below ``directory``; one writer at a time (the run's claim sees to that).

    Attributes:
        token: fencing token of the writer; a commit is refused once a larger token has committed.
        reached: called with the name of every instant of a commit, so that tests can kill at each.
    """

    directory: Path
    token: int = 0
    keep_last: int = 3
    keep_best: bool = True
    reached: Failpoint = _nothing

    def clean(self) -> list[str]:
        """Removes what killed commits and prunings left behind; call it under the run's claim."""
        left = [p for p in self._entries() if p.name.startswith((".tmp-", ".del-", ".probe-", f".{LATEST_FILE}."))]
        for path in left:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return [path.name for path in left]

    def preflight(self) -> None:
        """Writes, reads back and removes a file where commits will go: better to learn of it now than at the first one.

        Raises:
            CheckpointError: the directory cannot be written, or the disk is full.
        """
        probe = self.directory / f".probe-{uuid.uuid4().hex[:8]}"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(os.urandom(PROBE_BYTES))
            _fsync(probe)
            size = len(probe.read_bytes())
        except OSError as error:
            raise full_disk(self.directory, error, PROBE_BYTES) from error
        finally:
            probe.unlink(missing_ok=True)
        if size != PROBE_BYTES:
            raise CheckpointError(f"{self.directory}: {PROBE_BYTES} bytes were written, {size} came back")
        self.require_space(round(HEADROOM * self._last_size()))

    def steps(self) -> list[int]:
        """Steps of all commits, oldest first; whether they are whole is not looked at."""
        return sorted(int(m.group(1)) for p in self._entries() if (m := _STEP.fullmatch(p.name)))

    def path(self, step: int) -> Path:
        """Where the commit of a step is, or would be."""
        return self.directory / f"step-{step:08d}"

    def newest(self) -> tuple[Path, Manifest, list[str]] | None:
        """The newest commit that is whole, its manifest, and what is wrong with the newer ones; None without any.

        Raises:
            CheckpointError: there are commits and none is whole: a run never starts over by itself.
        """
        wrong: list[str] = []
        for step in reversed(self.steps()):
            try:
                manifest = verify(self.path(step))
                if manifest.step != step:
                    raise CheckpointError(f"{self.path(step)} holds step {manifest.step}: it was renamed or copied")
                return self.path(step), manifest, wrong
            except CheckpointError as error:
                logger.warning("checkpoint %s is not used: %s", self.path(step).name, error)
                wrong.append(str(error))
        if wrong:
            raise CheckpointError(
                f"no checkpoint in {self.directory} is whole: {'; '.join(wrong)}; restore one of them, or start over "
                "with --fresh (it sets this directory aside)"
            )
        return None

    def largest_token(self) -> int:
        """The largest token that has committed here; 0 where no manifest can be read."""
        found = [0]
        for step in self.steps():
            with suppress(CheckpointError):
                found.append(read_manifest(self.path(step)).token)
        return max(found)

    def open(self) -> Path:
        """A new directory to write a commit's files into.

        Raises:
            CheckpointError: too little free space for another commit of the last one's size.
        """
        temporary = self.directory / f".tmp-{uuid.uuid4().hex[:12]}"
        with self._explain(temporary):
            self.directory.mkdir(parents=True, exist_ok=True)
            self.require_space(round(HEADROOM * self._last_size()))
            temporary.mkdir()
        self.reached("opened")
        return temporary

    def commit(
        self,
        temporary: Path,
        step: int,
        *,
        stage: str,
        identity: dict[str, Any],
        parts: Collection[str] = (),
        metric: float | None = None,
        state: dict[str, Any] | None = None,
        versions: dict[str, str] | None = None,
    ) -> Path:
        """Makes the files of ``temporary`` the commit of ``step``; returns its directory.

        A step that is committed already (by the attempt before) is left as it is: the bytes would be the same.

        Args:
            parts: files without which it is no commit, such as one of every rank.

        Raises:
            CheckpointError: a part is missing, the disk is full, files cannot be written, or a later claim has taken
                over. The commits that were there are untouched, and ``temporary`` is gone.
        """
        try:
            with self._explain(temporary):
                self._fence()
                _require(temporary, parts)
                for path in sorted(temporary.rglob("*")):
                    _fsync(path)
                self.reached("files")
                manifest = Manifest(
                    step,
                    stage,
                    identity,
                    self.token,
                    metric,
                    describe_files(temporary),
                    state or {},
                    versions or {},
                )
                (temporary / MANIFEST_FILE).write_text(manifest.dump(), encoding="utf-8")
                _fsync(temporary / MANIFEST_FILE)
                _fsync(temporary)
                self.reached("manifest")
                target = self.path(step)
                broken = self.directory / f".del-{step}-{uuid.uuid4().hex[:8]}"
                if target.is_dir() and not self._whole(target):
                    target.rename(broken)
                if not target.is_dir():
                    temporary.rename(target)
                self.reached("renamed")
                shutil.rmtree(broken, ignore_errors=True)
                _fsync(self.directory)
                self._hint(target.name)
                self.reached("latest")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self.prune()
        self.reached("pruned")
        return target

    def prune(self) -> None:
        """Removes all but the last ``keep_last`` commits and the best one; never the only one."""
        steps = self.steps()
        kept = set(steps[-self.keep_last :])
        if self.keep_best and (best := self._best(steps)) is not None:
            kept.add(best)
        for step in set(steps) - kept:
            doomed = self.directory / f".del-{step}-{uuid.uuid4().hex[:8]}"
            self.path(step).rename(doomed)
            self.reached("doomed")
            shutil.rmtree(doomed, ignore_errors=True)

    def require_space(self, num_bytes: int) -> None:
        """Raises CheckpointError when fewer bytes are free than wanted."""
        self.directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.directory).free
        if free < num_bytes:
            raise CheckpointError(
                f"{self.directory}: a checkpoint needs {num_bytes} bytes, {free} are free; free some space, lower "
                "checkpoint.keep_last, or set run_dir elsewhere"
            )

    def _best(self, steps: list[int]) -> int | None:
        found: dict[int, float] = {}
        for step in steps:
            try:
                metric = read_manifest(self.path(step)).metric
            except CheckpointError:
                continue
            if metric is not None and math.isfinite(metric):
                found[step] = metric
        return max(found, key=lambda step: (found[step], step)) if found else None

    @staticmethod
    def _whole(directory: Path) -> bool:
        try:
            verify(directory)
        except CheckpointError:
            return False
        return True

    def _fence(self) -> None:
        token = self.largest_token()
        if token > self.token:
            raise CheckpointError(
                f"{self.directory} was taken over by a later run (token {token}, mine is {self.token}): "
                "this process lost its claim and stops without writing"
            )

    def _last_size(self) -> int:
        for step in reversed(self.steps()):
            try:
                return sum(size for size, _ in read_manifest(self.path(step)).files.values())
            except CheckpointError:
                continue
        return 0

    def _hint(self, name: str) -> None:
        temporary = self.directory / f".{LATEST_FILE}.{uuid.uuid4().hex[:8]}"
        temporary.write_text(name + "\n", encoding="utf-8")
        _fsync(temporary)
        self.reached("hint")
        temporary.replace(self.directory / LATEST_FILE)
        _fsync(self.directory)

    def _entries(self) -> Iterator[Path]:
        return iter(self.directory.iterdir()) if self.directory.is_dir() else iter(())

    @contextmanager
    def _explain(self, temporary: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            told = full_disk(self.directory, error, self._last_size())  # with what is free now, the new files included
            shutil.rmtree(temporary, ignore_errors=True)
            raise told from error


def _require(directory: Path, parts: Collection[str]) -> None:
    if missing := [name for name in parts if not (directory / name).is_file()]:
        raise CheckpointError(
            f"{directory}: {', '.join(missing[:3])} of {len(parts)} parts are not there, though their ranks have "
            "written them: put run_dir on a file system that all nodes share, and name it by an absolute path"
        )


def full_disk(directory: Path, error: OSError, needed: int) -> CheckpointError:
    """A write error in words: what was wanted, what is free, what to do. The commits before are untouched."""
    free = shutil.disk_usage(directory).free if directory.is_dir() else 0
    cause = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else str(error)
    return CheckpointError(
        f"{directory}: the checkpoint was not written: {cause} (about {max(needed, 1)} bytes needed, {free} free); "
        "earlier checkpoints are untouched; free some space or fix the permissions, then run the same command again"
    )


def rank_file(rank: int) -> str:
    """Name of the file with a rank's own state."""
    return f"rank-{rank}.json"


def write_state(path: Path, state: Any) -> None:
    """Plain JSON; floats come back to the last digit."""
    path.write_text(json.dumps(state, allow_nan=False), encoding="utf-8")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
