"""A node that is started in the foreground ends with the command that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

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
