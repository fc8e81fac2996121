"""TRL 1.12, the last release with a PPOTrainer, beside the project's own packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import HERE

PEER = HERE.parent / "build" / "trl-1.12"


def install_peer() -> None:
    """Installs it once, alone, into build/."""
    if not PEER.is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(PEER), "trl==1.12.0"]
        subprocess.run(command, check=True)


def run_peer(program: str, order: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Runs ``peers/PROGRAM`` in a process of its own; returns the JSON of its last line.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    path = folder / "order.json"
    path.write_text(json.dumps(order), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{PEER}{os.pathsep}{HERE}", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(HERE / "peers" / program), str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.strip().splitlines()[-1])
