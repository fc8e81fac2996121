"""Token mode is chosen while it can still be: before ray is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("code", "mode"),
    [
        ("import rlhf.workers.placement", "token"),
        ("import ray, rlhf.workers.placement", "None"),  # ray.init decides for a private runtime
        ("import os; os.environ['RAY_AUTH_MODE'] = 'disabled'; import rlhf.workers.placement", "disabled"),
    ],
)
def test_mode_after_import(code: str, mode: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    shown = subprocess.run([sys.executable, "-c", f"{code}; import os; print(os.environ.get('RAY_AUTH_MODE'))"],
                           env=environment, capture_output=True, text=True, timeout=60)  # fmt: skip
    assert shown.stdout.split() == [mode], shown.stderr
