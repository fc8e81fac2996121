"""One run, one directory: claimed by one live process, described before anything is started."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from rlhf.config import config_hash, dump_yaml
from rlhf.config.base import Section
from rlhf.engine.checkpoint.store import CheckpointStore
from rlhf.errors import CheckpointError, ConfigError, RunLockedError
from rlhf.models.source import RUN_FILE
from rlhf.telemetry.environment import git_sha, machine, versions
from rlhf.telemetry.logging import setup_logging

CONFIG_YAML = "config.yaml"
CONFIG_JSON = "config.json"
SUMMARY_FILE = "summary.json"
LOCK_FILE = ".lock"

CHECKPOINTS = "checkpoints"

OWNER_SECONDS = 1.0

_held: dict[Path, tuple[int, int]] = {}
"""Claimed directories: (descriptor of the lock, fencing token)."""

RAY_COPY = "working_dir_files"
"""Folder of Ray's session below which packages of jobs are unpacked."""


def prepare_run_dir(config: Section, *, git_cwd: str | Path = ".") -> Path:
    """Creates and claims ``config.run_dir``, writes the resolved config beside its hash, and opens the driver's log.

    The claim is a file lock that ends with this process, so a killed run never blocks the next one. An unfinished
    directory may be entered again (that is how a run resumes); a finished one may not.

    Returns:
        The directory as an absolute path: workers on a joined cluster have a working directory of their own.

    Args:
        config: a stage's config (it has ``run_dir``, ``stage`` and ``telemetry``).
        git_cwd: a directory of the work tree whose commit is recorded.

    Raises:
        CheckpointError: the directory holds a finished run, belongs to another live process, or cannot be written.
        ConfigError: it would lie in a copy of the working directory that Ray removes.
    """
    tree = config.model_dump(mode="json")
    named = Path(tree["run_dir"])
    path = named.absolute()
    if not named.is_absolute() and RAY_COPY in path.parts:
        raise ConfigError(
            f"run_dir={named} is relative, and this job runs in a copy of the working directory that Ray removes "
            "afterwards: name a directory that stays (run_dir=/shared/runs/...), or use rlhf submit, which does so"
        )
    if (path / RUN_FILE).is_file():
        raise CheckpointError(
            f"{path} holds a finished run: set run_dir to a new directory, or set this one aside with --fresh"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        claim(path)
        write_atomic(path / CONFIG_YAML, dump_yaml(config))
        write_json(path / CONFIG_JSON, describe_run(config, git_cwd=git_cwd))
    except OSError as error:
        raise CheckpointError(f"run_dir={path} cannot be written: {error}; set run_dir elsewhere") from None
    level = tree.get("telemetry", {}).get("log_level", "INFO")
    setup_logging(path, "driver", 0, level=level)
    return path


def describe_run(config: Section, *, git_cwd: str | Path = ".") -> dict[str, Any]:
    """What a run stands on: config and its hash, commit, package versions, machine, time of start (UTC)."""
    return {
        "stage": config.model_dump(mode="json")["stage"],
        "config_hash": config_hash(config),
        "git_sha": git_sha(git_cwd),
        "versions": versions(),
        "machine": machine(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "config": config.model_dump(mode="json"),
    }


def fencing_token(path: Path) -> int:
    """Number of this process's claim; every later claim of the directory has a larger one."""
    return _held[path.resolve()][1]


def release_run_dir(path: Path) -> None:
    """Gives the claim back before the process ends; safe to call twice."""
    held = _held.pop(path.resolve(), None)
    if held is not None:
        os.close(held[0])


def set_aside(path: Path) -> Path | None:
    """Renames a run directory, so that the same command starts over; returns the new name, None without a directory.

    Raises:
        RunLockedError: a live process works in it.
    """
    if not path.is_dir():
        return None
    claim(path)
    try:
        aside = path.with_name(f"{path.name}.before-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
        path.rename(aside)
    finally:
        release_run_dir(path)
    return aside


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON; a half-written file never appears under its name."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_atomic(path: Path, text: str) -> None:
    """Writes text through a temporary file in the same directory."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def claim(path: Path) -> None:
    """Takes a directory for this process until it ends or gives it back.

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
    token = int(before[2]) if len(before) == 3 and before[2].isdigit() else 0
    # a copy of a run's directory may come without its lock
    token = 1 + max(token, CheckpointStore(key / CHECKPOINTS).largest_token())
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


def rewind_samples(path: Path, step: int) -> None:
    """Drops the samples of ``step`` and later ones, which the run is about to write again."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").split("\n")
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < step]
    write_atomic(path, "".join(f"{line}\n" for line in kept))
