"""The benchmark of the quickstart tells its options, and refuses what is no seed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("word", "code", "told"), [("--help", 0, "SEED"), ("many", 2, "invalid int value")])
def test_options(word: str, code: int, told: str) -> None:
    command = [sys.executable, "benchmarks/quickstart_seeds.py", word]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == code and told in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
