from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rlhf.telemetry.memory import PeakMemory, read_pss_bytes

ALLOCATE = "import sys; block = b'x' * (100 * 2**20); print('ready', flush=True); sys.stdin.read()"
GRANDCHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ALLOCATE!r}])"


def _hold(code: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


def _until(condition: Callable[[], bool]) -> None:
    """The sampling thread gets its turn when the machine has one for it."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_child_that_allocates_is_seen_and_the_peak_outlives_it() -> None:
    with PeakMemory(interval_seconds=0.05, pss_every=2) as memory:
        before = memory.peak_rss_mib
        child = _hold(ALLOCATE)
        seen = len(memory.series) + 1  # the one that runs now may have missed the child
        _until(lambda: len(memory.series) >= seen + 3)  # every second has a PSS
        child.communicate()
        _until(lambda: memory.series[-1].rss_mib < memory.peak_rss_mib - 90)
    assert before > 5
    assert 100 < memory.peak_rss_mib - before < 200
    assert memory.series[-1].rss_mib < memory.peak_rss_mib - 90
    assert max(sample.rss_mib for sample in memory.series) == memory.peak_rss_mib
    assert max(sample.num_processes for sample in memory.series) >= 2
    if Path("/proc/self/smaps_rollup").exists():
        assert memory.peak_pss_mib is not None
        assert memory.peak_pss_mib > 100
        assert any(sample.pss_mib is None for sample in memory.series)


def test_a_grandchild_counts() -> None:
    memory = PeakMemory()
    before = memory.sample(with_pss=False).rss_mib
    child = _hold(GRANDCHILD)
    assert memory.sample(with_pss=False).rss_mib - before > 100
    child.communicate()


def test_extra_pids_count_once_and_absent_ones_do_not_matter() -> None:
    child = _hold(ALLOCATE)
    plain = PeakMemory().sample(with_pss=False).rss_mib
    listed = PeakMemory(extra_pids=[child.pid, os.getpid(), 2**22 + 1]).sample(with_pss=False).rss_mib
    child.communicate()
    assert abs(plain - listed) < 20


def test_a_process_outside_the_tree_counts_when_listed() -> None:
    # Started by a child that ends at once, so that it is no descendant of this process any more.
    code = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]],"
        " stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,"
        " stderr=subprocess.DEVNULL, start_new_session=True); print(p.pid)"
    )
    sleeper = "import time; block = b'x' * (100 * 2**20); time.sleep(30)"
    done = subprocess.run([sys.executable, "-c", code, sleeper], capture_output=True, check=True)
    pid = int(done.stdout)
    try:
        memory = PeakMemory()
        deadline = time.monotonic() + 10
        while (read_pss_bytes(pid) or 0) < 100 * 2**20 and time.monotonic() < deadline:
            time.sleep(0.02)
        before = memory.sample(with_pss=False).rss_mib
        memory.add_pids([pid])
        assert memory.sample(with_pss=False).rss_mib - before > 100
    finally:
        os.kill(pid, 9)


def test_pss_of_an_absent_process_is_none() -> None:
    assert read_pss_bytes(2**22 + 1) is None
