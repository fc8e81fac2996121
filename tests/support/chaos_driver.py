"""A real driver process: ``python -m rlhf STAGE``, to be killed from outside."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from rlhf.errors import ConfigError

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 300.0


class Driver:
    """One launch; its output goes to a file that all launches share."""

    def __init__(self, config: Path, output: Path, stage: str = "ppo") -> None:
        self.command = [sys.executable, "-m", "rlhf", stage, "--config", str(config)]
        self.output = output
        with output.open("ab") as log:
            self.process = subprocess.Popen(self.command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()

    @property
    def pid(self) -> int:
        """Of the driver itself."""
        return self.process.pid

    def family(self) -> list[int]:
        """Ray's processes and the workers."""
        return [process.pid for process in psutil.Process(self.pid).children(recursive=True)]

    def reaches(self, condition: Callable[[], bool], what: str) -> None:
        """Waits for something that the live driver does.

        Raises:
            ConfigError: it ended before, or took too long.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if self.process.poll() is not None:
                text = self.output.read_text(errors="replace")[-2000:]
                raise ConfigError(f"the driver ended with {self.process.returncode} before {what}: {text}")
            if time.monotonic() > deadline:
                raise ConfigError(f"no {what} within {PATIENCE_SECONDS:g} s")
            time.sleep(0.05)

    def kill(self) -> int:
        """SIGKILL to the driver alone; its exit status."""
        self.process.kill()
        return self.process.wait()

    def wait(self) -> int:
        """The exit code of a driver that ends by itself."""
        return self.process.wait(timeout=PATIENCE_SECONDS)


def newest_step(run_dir: Path) -> int:
    """Step of the newest checkpoint, 0 without any."""
    return max((int(path.name[5:]) for path in (run_dir / "checkpoints").glob("step-*")), default=0)


def committed(run_dir: Path, step: int) -> bool:
    """Whether a checkpoint of this step, or a later one, is there."""
    return newest_step(run_dir) >= step
