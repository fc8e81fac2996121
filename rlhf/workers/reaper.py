"""Ends what Ray leaves behind when a driver with a private runtime is killed.

Ray's servers and workers die with their driver. Two agents of the raylet do not: they sit idle until somebody ends
them. A process of its own waits for the driver's end, which it sees as the end of its input, and kills them.

    python reaper.py DRIVER_PID        (started by ``watch_over``; input: a pipe that the driver holds)
"""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
POLL_SECONDS = 0.5
END_SECONDS = 10.0


@contextmanager
def watch_over(driver_pid: int) -> Iterator[None]:
    """From a started private runtime until it is shut down: its agents will not outlive the driver."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(driver_pid)], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield
    finally:
        try:
            process.communicate(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def agents_of(driver_pid: int) -> list[psutil.Process]:
    """The agents of the driver's raylet, as far as they have started."""
    found: list[psutil.Process] = []
    with suppress(psutil.Error):
        for process in psutil.Process(driver_pid).children(recursive=True):
            with suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith(AGENTS):
                    found.append(process)
    return found


def main(driver_pid: int) -> None:
    """Learns which processes the agents are, waits for the end of the input, and kills those that are left."""
    agents: list[psutil.Process] = []
    while not select.select([sys.stdin], [], [], POLL_SECONDS if len(agents) < len(AGENTS) else None)[0]:
        agents = agents_of(driver_pid) or agents
    for agent in agents:  # psutil compares the start time: a process that took over the number is left alone
        with suppress(psutil.Error):
            agent.kill()


if __name__ == "__main__":
    main(int(sys.argv[1]))
