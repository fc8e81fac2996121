"""Decoding batch by batch: the same draws as in slots, on a GPU too, and few waits there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.config import SamplingConfig
from rlhf.errors import NumericsError
from rlhf.rollout import batching, decoding
from rlhf.rollout.protocol import Rollout
from tests.support.pretended_gpu import PretendedGpu
from tests.unit.rollout.test_transformers_engine import engine, tasks

SAMPLING = SamplingConfig(max_response_tokens=24)


def drawn_by(generator: Any, *, slots: bool) -> list[Rollout]:
    generator._slots = slots
    return generator.generate(tasks(), SAMPLING)


def said(rollouts: Sequence[Rollout]) -> list[tuple[Any, ...]]:
    return [(r.key, r.response_ids, r.finished) for r in rollouts]


@pytest.mark.parametrize("every", [1, 8, 100])
def test_the_draws_are_those_of_slots(every: int, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = engine(tiny_base, microbatch=8)
    wanted = drawn_by(generator, slots=True)
    monkeypatch.setitem(decoding.LOOK_EVERY, "cpu", every)
    found = drawn_by(generator, slots=False)
    assert said(found) == said(wanted)
    assert len({len(r.response_ids) for r in found}) > 5 and {r.finished for r in found} == {True, False}
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=2e-5)


def test_rows_that_have_ended_leave_at_a_look(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    draw = batching.draw

    def counted(logits: torch.Tensor, *rest: Any) -> Any:
        seen.append(len(logits))
        return draw(logits, *rest)

    monkeypatch.setattr(batching, "draw", counted)
    found = drawn_by(engine(tiny_base), slots=False)
    lengths = [len(r.response_ids) for r in found]
    assert len(seen) == max(lengths)
    for step, rows in enumerate(seen):
        running = sum(length > step for length in lengths)
        assert running <= rows and batching.COMPACT_BELOW * rows <= running, "as few as on a CPU"


def test_logits_that_are_not_finite_stop_it(tiny_base: Path) -> None:
    generator = engine(tiny_base)
    with torch.no_grad():
        generator._causal.lm_head.weight[7] = math.nan
    with pytest.raises(NumericsError, match="not finite"):
        drawn_by(generator, slots=False)


@pytest.mark.parametrize("slots", [False, True], ids=["batches", "slots"])
def test_on_a_gpu_the_draws_are_the_same_and_few_are_waited_for(slots: bool, tiny_base: Path) -> None:
    wanted = drawn_by(engine(tiny_base, microbatch=12), slots=False)
    with PretendedGpu() as gpu:
        generator = engine(tiny_base, microbatch=12)
        generator._slot_words |= {"steps": None, "captures": None}
        gpu.put(generator._model)
        gpu.forget()
        found = drawn_by(generator, slots=slots)
        waits = sum(count for place, count in gpu.waits.items() if "rlhf/" in place)  # transformers looks at its masks
    assert said(found) == said(wanted)
    steps = 2 * SAMPLING.max_response_tokens  # 24 tasks in two batches
    assert waits < steps / 3, gpu.waits
