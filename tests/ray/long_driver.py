"""The driver itself killed and stopped; four launches of the program, so it is part of ``make chaos`` only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

from tests.ray.test_chaos import place, reference  # noqa: F401 - fixtures
from tests.support.chaos_driver import Driver, committed, newest_step
from tests.support.chaos_runs import Outcome, chaos_config, differences, outcome_of, write_config
from tests.support.runtime import gone

ROOT = Path(__file__).parents[2]


def test_a_driver_killed_and_stopped_goes_on_with_the_same_command(
    reference: Outcome,  # noqa: F811
    tiny_base: Path,
    place: Path,  # noqa: F811
) -> None:
    """SIGKILL leaves no process behind; a second launch is locked out; SIGTERM commits; both resume."""
    run_dir, output = place / "driver", place / "output.txt"
    config = write_config(chaos_config(tiny_base, run_dir), place / "config.yaml")

    with ExitStack() as stack:
        launch = lambda: stack.enter_context(Driver(config, output))  # noqa: E731
        first = launch()
        first.reaches(lambda: committed(run_dir, 1), "its first checkpoint")
        os.kill(first.pid, signal.SIGSTOP)  # it must not finish meanwhile
        family = first.family()
        second = subprocess.run(first.command, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert second.returncode == 7 and f"pid {first.pid} on" in second.stdout, second.stdout + second.stderr
        assert len(family) >= 4, "Ray's own processes and the workers"
        assert first.kill() == -signal.SIGKILL
        assert gone(family, within=10), "orphans after ten seconds"

        before = newest_step(run_dir)
        third = launch()
        third.reaches(lambda: committed(run_dir, before + 1), "a checkpoint of its own")
        os.kill(third.pid, signal.SIGTERM)
        assert third.wait() == 3, output.read_text()
        assert "stopped by SIGTERM after step" in output.read_text() and not (run_dir / "run.json").exists()

        assert launch().wait() == 0, output.read_text()
        found = outcome_of(run_dir, json.loads((run_dir / "summary.json").read_text()), {})
        assert differences(reference, found) == []
