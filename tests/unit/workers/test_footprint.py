"""Memory of a process as a profile reads it."""

from __future__ import annotations

import gc

import pytest
import torch

from rlhf.telemetry.spans import Recorder
from rlhf.workers.footprint import Footprint
from rlhf.workers.heap import give_back


def test_resident_pages_follow_what_is_touched() -> None:
    recorder = Recorder()
    recorder.switch(Footprint())
    gc.collect()
    give_back()  # what tests before have freed must not go back to the system in between
    with recorder.span("before"):
        pass
    with recorder.span("after"):
        kept = torch.ones(64 << 18)  # 64 MiB
    before, after = recorder.take().done
    assert after.memory["rss"] - before.memory["rss"] > 60 << 20 and kept.numel()
    assert (recorder.take().pss or 1) > 0


def test_every_reading_of_a_device_waits_for_it_and_starts_its_peak_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    peaks = iter([30, 20, 10])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("wait"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: next(peaks))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: calls.append("anew"))
    recorder = Recorder()
    recorder.switch(Footprint())
    with recorder.span("outer"), recorder.span("inner"):
        pass
    inner, outer = recorder.take().done
    assert (inner.memory["gpu"], outer.memory["gpu"]) == (20, 30)  # outer: before and after the inner one
    assert calls == ["wait", "wait", "anew", "wait", "anew", "wait", "anew"]
