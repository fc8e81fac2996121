"""Much freed memory goes back to the system, a little stays; what is in use stays anyway."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from rlhf.workers import heap
from rlhf.workers.heap import KEPT_BYTES, give_back
from rlhf.workers.heap_settings import WITHIN_AN_ACT
from rlhf.workers.runtime import base_environment
from tests.support.pages import MIB, resident_bytes


def leave_behind(mebibytes: int) -> list[torch.Tensor]:
    """Fills blocks of the C library's heap, 64 KiB each, and frees all but sixteen."""
    blocks = [torch.full((16 * 1024,), float(number)) for number in range(16 * mebibytes)]
    return blocks[::mebibytes]


def test_what_was_freed_is_the_system_s_again() -> None:
    kept = leave_behind(100)
    held = resident_bytes()
    give_back(all_of_it=True)
    assert held - resident_bytes() > 80 * MIB
    assert [tensor.unique().tolist() for tensor in kept] == [[100.0 * number] for number in range(16)]
    give_back(all_of_it=True)


@pytest.mark.parametrize("mebibytes", [60, 300])
def test_little_stays_for_the_next_act(mebibytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    give_back(all_of_it=True)
    held = resident_bytes()
    kept = leave_behind(mebibytes)
    left = resident_bytes() - held
    assert left > 0.8 * mebibytes * MIB
    give_back()
    now = resident_bytes() - held
    assert now > 0.8 * left if mebibytes * MIB < KEPT_BYTES else now < 40 * MIB
    del kept
    monkeypatch.setattr(heap._Kept, "pages", None)
    give_back()
    assert resident_bytes() - held < 40 * MIB, "the first return is of everything"


CHURN = """
import resource, threading, torch
def acts():  # in a thread, as a worker's are
    for number in range(6):
        if number == 3:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        held = []
        for _ in range(100):
            scratch = torch.ones(1 << 18)
            held.append(torch.ones(1 << 17))  # 512 KiB
            del scratch
        while held:
            held.pop()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=acts)
thread.start()
thread.join()
"""


def test_within_an_act_pages_are_made_once() -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    own = base_environment(threads=1, use_gpu=False)
    faults = []
    for environment in (plain, plain | {name: own[name] for name in WITHIN_AN_ACT}):
        done = subprocess.run(
            [sys.executable, "-c", CHURN], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        faults.append(int(done.stdout))
    assert faults[1] < 500 < 5000 < faults[0], faults
