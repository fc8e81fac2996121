"""The column ZeRO-3 of the table of adapter methods, with a real DeepSpeed engine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.config.methods import METHODS
from rlhf.workers.runtime import worker_environment

USABLE = [name for name, method in METHODS.items() if not method.refused]


def test_methods_under_zero3(tiny_base: Path) -> None:
    """Losses under ZeRO-3, the base loaded in pieces, equal those of torch alone; in a process of its own."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    environment = {
        **os.environ,
        **worker_environment(0, 1, 0, 1, "127.0.0.1", port, threads=1, use_gpu=False, interfaces={}),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.zero3_methods", str(tiny_base), *USABLE],
        capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2], timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for name in USABLE:
        plain, cut = found[name]
        if METHODS[name].zero3:
            assert cut == pytest.approx(plain, rel=1e-5) and plain[2] < plain[0] - 1e-3, name
        else:
            assert METHODS[name].limit and f"lora.method={name} does not work under ZeRO-3" in cut
