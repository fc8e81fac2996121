"""The people's turn in a pipeline: waiting until the preference store holds enough judgments."""

from __future__ import annotations

import re
import subprocess
import sys
import time

from pydantic import Field

from rlhf.config.base import Section
from rlhf.errors import ConfigError, WorkerError
from rlhf.telemetry.console import get_console

HOURS = 3600.0
COUNT_SECONDS = 600.0


class Judgments(Section):
    """Rankings to wait for."""

    project: str
    """Project of the preference store (``RLHF_STORE``)."""
    count: int = Field(ge=1)
    poll_seconds: float = Field(30.0, gt=0)
    timeout_hours: float = Field(24.0 * 14, gt=0)


def wait_for_judgments(wanted: Judgments, *, wait: bool) -> int | None:
    """Waits until people have ranked enough; a store that was counted once may be away for a while.

    Raises:
        ConfigError: not enough within ``timeout_hours``, or there is no such project.
        WorkerError: the store does not answer at the first time: it may be another one.
    """
    console, deadline, told = get_console(), time.monotonic() + wanted.timeout_hours * HOURS, ""
    found: int | None = None
    while True:
        try:
            found = count_judgments(wanted.project)
            state = f"{found} of {wanted.count} judgments; people rank with: rlhf annotate --project {wanted.project}"
        except WorkerError as error:
            if found is None:
                raise
            state = f"{error.cause}; trying again every {wanted.poll_seconds:g} s"
        if found >= wanted.count:
            console.print(f"{found} judgments in project {wanted.project}", markup=False)
            return 0
        if state != told:
            console.print(state, markup=False, soft_wrap=True)
            told = state
        if not wait:
            return None
        if time.monotonic() > deadline:
            raise ConfigError(f"{found} of {wanted.count} judgments after {wanted.timeout_hours:g} hours: the same "
                              "command goes on waiting")  # fmt: skip
        time.sleep(wanted.poll_seconds)


def count_judgments(project: str) -> int:
    """Votes in a project of the preference store, as ``rlhf prefs stats`` counts them.

    Raises:
        ConfigError: there is no such project.
        WorkerError: the store does not answer.
    """
    command = [sys.executable, "-m", "rlhf", "prefs", "stats", project]
    head = f"judgments of project {project!r} cannot be counted"
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COUNT_SECONDS)
    except subprocess.TimeoutExpired:
        raise WorkerError("preference store", 0, f"{head}: no answer within {COUNT_SECONDS:g} s", "silent") from None
    found = re.search(r"^\W*votes\W+(\d+)", done.stdout, re.MULTILINE)
    if done.returncode == 0 and found is not None:
        return int(found.group(1))
    reason = f"{head}: {(done.stdout.strip() or done.stderr.strip())[-500:]}"
    if done.returncode == ConfigError.exit_code:
        raise ConfigError(reason)
    raise WorkerError("preference store", 0, reason)
