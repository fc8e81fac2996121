"""Freed memory goes back to the system; what is in use stays."""

from __future__ import annotations

import torch

from rlhf.workers.heap import give_back
from tests.support.pages import MIB, resident_bytes


def test_what_was_freed_is_the_system_s_again() -> None:
    blocks = [torch.full((16 * 1024,), float(number)) for number in range(1600)]  # 64 KiB each: the C library's heap
    kept = blocks[::100]
    del blocks
    held = resident_bytes()
    give_back()
    assert held - resident_bytes() > 80 * MIB
    assert [tensor.unique().tolist() for tensor in kept] == [[100.0 * number] for number in range(16)]
    give_back()
