"""The actor around a worker, without Ray: whose clock it goes by."""

from __future__ import annotations

import time
from pathlib import Path

from rlhf.workers.context import WorkerContext
from rlhf.workers.group import _Host


class Worker:
    def __init__(self, context: WorkerContext) -> None:
        self.context = context


def test_silence_counts_from_this_process_s_own_clock(tmp_path: Path) -> None:
    """The context was made by the driver, on a host that may have been up for longer."""
    host = _Host({})
    context = WorkerContext("rollout", 0, 1, str(tmp_path), last_beat=time.monotonic() + 1e6)
    assert host.build(Worker, context, {}, (), {}) is None
    assert 0 <= host.silence() < 60
