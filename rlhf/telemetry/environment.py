"""What a run stood on: package versions, the source revision, the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import psutil

_PACKAGES = (
    "rlhf",
    "torch",
    "ray",
    "deepspeed",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "gradio",
    "numpy",
    "pydantic",
    "safetensors",
    "sqlalchemy",
    "vllm",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results.

    Read from package metadata: nothing heavy is imported. A package that is not installed is left out.
    """
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_sha(path: str | Path = ".") -> str | None:
    """Commit of the work tree that holds `path`, with ``-dirty`` where tracked files differ from it.

    Returns None outside a work tree, before the first commit, or without git.
    """
    directory = Path(path)
    directory = directory if directory.is_dir() else directory.parent
    sha = _git(directory, "rev-parse", "--verify", "HEAD")
    if not sha:
        return None
    changes = _git(directory, "status", "--porcelain", "--untracked-files=no")
    return f"{sha}-dirty" if changes else sha


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def machine() -> dict[str, object]:
    """Processors and memory that this process may use (container limits included), and the platform."""
    return {
        "cpu_count": _cpu_count(),
        "memory_gib": round(_memory_bytes() / 1024**3, 1),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def _cpu_count() -> int:
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every platform
        allowed = os.cpu_count() or 1
    quota = _read_words("/sys/fs/cgroup/cpu.max")
    if len(quota) == 2 and quota[0].isdigit():
        allowed = min(allowed, max(1, round(int(quota[0]) / int(quota[1]))))
    return allowed


def _memory_bytes() -> int:
    total = int(psutil.virtual_memory().total)
    limit = _read_words("/sys/fs/cgroup/memory.max")
    return min(total, int(limit[0])) if limit and limit[0].isdigit() else total


def _read_words(path: str) -> list[str]:
    try:
        return Path(path).read_text().split()
    except OSError:
        return []
