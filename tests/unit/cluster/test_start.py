"""A node that is started in the foreground ends with the command that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.start import node_environment

NODE = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print(os.getpid(), flush=True)
time.sleep(60)
"""
WRAPPER = """
import os, sys
from cluster.start import foreground
sys.exit(foreground([sys.executable, "-c", os.environ["NODE"]], dict(os.environ)))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_command_reaches_the_node(number: signal.Signals):
    program = NODE if number == signal.SIGTERM else NODE.replace("SIGTERM", "SIGINT")
    environment = os.environ | {"NODE": program}
    wrapper = subprocess.Popen(
        [sys.executable, "-c", WRAPPER], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert wrapper.stdout is not None
    node = int(wrapper.stdout.readline())
    wrapper.send_signal(number)
    assert wrapper.wait(30) == 7  # the node's own code: it was asked, not orphaned
    assert not Path(f"/proc/{node}").exists()
    wrapper.stdout.close()


def test_a_node_that_a_signal_ends_is_told_as_a_shell_would():
    environment = os.environ | {"NODE": "import os; os.kill(os.getpid(), 9)"}
    assert subprocess.run([sys.executable, "-c", WRAPPER], env=environment, check=False).returncode == 137


def test_what_ray_is_told_of_a_node_s_workers_may_be_told_otherwise(monkeypatch: pytest.MonkeyPatch):
    names = ("RAY_worker_niceness", "RAY_prestart_worker_first_driver")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert [node_environment()[name] for name in names] == ["0", "0"]
    monkeypatch.setenv(names[1], "1")
    assert [node_environment()[name] for name in names] == ["0", "1"]
