from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from rlhf.telemetry.environment import git_sha, machine, versions


def _git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    command = ["git", "-C", str(directory), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_versions_are_what_is_installed_and_load_nothing_heavy() -> None:
    found = versions()
    # wheels for CUDA name their version of it in the module alone
    assert found["torch"].partition("+")[0] == str(torch.__version__).partition("+")[0]
    assert {"python", "ray", "deepspeed", "transformers", "trl", "peft"} <= found.keys()
    code = (
        "import sys; from rlhf.telemetry.environment import versions; versions();"
        "print([n for n in ('torch', 'ray', 'deepspeed', 'transformers', 'gradio') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_git_sha_tells_clean_from_dirty_and_none(tmp_path: Path) -> None:
    assert git_sha(tmp_path) is None
    _git(tmp_path, "init", "-q")
    assert git_sha(tmp_path) is None  # no commit yet
    file = tmp_path / "sub" / "a.txt"
    file.parent.mkdir()
    file.write_text("1")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-q", "-m", "one")
    sha = _git(tmp_path, "rev-parse", "HEAD")
    assert git_sha(tmp_path) == sha == git_sha(file)
    file.write_text("2")
    assert git_sha(file.parent) == f"{sha}-dirty"


def test_machine_is_plausible() -> None:
    found = machine()
    assert isinstance(found["cpu_count"], int) and found["cpu_count"] >= 1
    assert isinstance(found["memory_gib"], float) and 0.1 < found["memory_gib"] < 100_000
