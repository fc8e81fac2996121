"""Decoding whose steps are replayed: what only Python does happens twice per shape, and a capture may fail.

Graphs need a GPU; here a stand-in forgets what Python did from the third step of a shape on, as a replay does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf.config import SamplingConfig
from rlhf.rollout import graphs, slots
from rlhf.rollout.decoding import Drawn, SlotDecoder
from rlhf.rollout.graphs import Captures, StepGraphs, can_be_captured
from rlhf.rollout.protocol import PromptTask

NUM_SLOTS, PROMPT, LIMIT = 8, 63, 57


class Replays:
    """Runs every step; what a step tells the cache about its width is forgotten from the third of a shape on."""

    def __init__(self, cache: slots.SlotCache) -> None:
        self.cache, self.visits = cache, dict[tuple[int, int], int]()

    def run(self, step: Callable[[int], None], num_slots: int, width: int) -> None:
        visits = self.visits[num_slots, width] = self.visits.get((num_slots, width), 0) + 1
        before = self.cache.width
        step(width)
        if visits > 2:
            self.cache.width = before


def draw(model: Any, tasks: list[PromptTask], stops: list[int], *, replays: bool) -> list[Drawn]:
    decoder: Any = SlotDecoder(
        model, tasks, SamplingConfig(max_response_tokens=LIMIT), stop_ids=stops, pad_id=2, num_slots=NUM_SLOTS,
        suppress_ids=(2,), reads_hidden=True,
    )  # fmt: skip
    decoder._look_every = 8
    decoder._cache = slots.SlotCache(NUM_SLOTS, PROMPT + LIMIT)
    decoder._graphs = Replays(decoder._cache)
    if not replays:
        decoder._graphs.run = lambda step, num_slots, width: step(width)
    return decoder.run()


def test_closing_gaps_copies_all_columns_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small bucket is run once, a larger one captured, then all slots turn over: the small one is captured last."""
    monkeypatch.setattr(slots, "FEWEST", 64)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.15, tie_word_embeddings=False,
        )
    ).eval()  # fmt: skip
    rng = np.random.default_rng(1)
    prompts = sorted(tuple(int(t) for t in rng.integers(3, 290, PROMPT)) for _ in range(2 * NUM_SLOTS))
    tasks = [PromptTask(str(i), prompt, seed=i) for i, prompt in enumerate(prompts)]
    free = [drawn.tokens for drawn in draw(model, tasks, [299], replays=False)]
    stays = {token for tokens in (*free[:NUM_SLOTS], *free[-2:]) for token in tokens}
    # six of the second eight stop early; the last two go on and are moved into the gaps
    stops = [next(t for t in tokens[:48] if t not in stays) for tokens in free[NUM_SLOTS:-2]]
    plain, replayed = (draw(model, tasks, stops, replays=r) for r in (False, True))
    assert sum(len(drawn.tokens) < LIMIT for drawn in plain) >= 6
    assert [drawn.tokens for drawn in replayed] == [drawn.tokens for drawn in plain]
    for one, other in zip(replayed, plain, strict=True):
        assert np.allclose(one.logprobs, other.logprobs, atol=1e-5)


def test_a_failed_capture_leaves_nothing_behind_and_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    @contextmanager
    def capture(graph: Any, **words: Any) -> Any:
        told.append(("capture", words["pool"]))
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    before = SimpleNamespace(device_index=0)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", SimpleNamespace)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: before)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: told.append(("stream", stream)))
    monkeypatch.setattr(
        torch._C, "_cuda_endAllocateToPool", lambda device, pool: told.append(("pool", device, pool)), raising=False
    )
    captures, steps = Captures(), list[int]()
    for _ in range(2):  # two runs over one model
        made = graphs.StepGraphs(captures)
        for _ in range(4):
            made.run(steps.append, 4, 256)
        assert made.num_captured == 0
    assert told == [("capture", (0, 7)), ("stream", before), ("pool", 0, (0, 7))]
    assert not captures.usable
    assert len(steps) == 9, "the step that was being captured is done again"


def test_without_memory_for_a_graph_the_next_run_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what this run has captured is given back."""
    room = iter([True, False, True])

    @contextmanager
    def capture(*_: object, **__: object) -> Iterator[None]:
        if not next(room):
            raise torch.OutOfMemoryError("CUDA out of memory")
        yield

    replays = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: replays.append(1)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(device_index=0))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda device, pool: None, raising=False)
    captures, steps = Captures(), list[int]()
    made = StepGraphs(captures)
    for width in (256, 256, 256, 512, 512, 512, 256):
        made.run(steps.append, 4, width)
    assert made.num_captured == 0 and captures.usable and len(replays) == 2
    assert steps == [256, 256, 512, 512, 512, 256], "captured once, replayed twice; after the failure nothing is"
    again = StepGraphs(captures)
    for _ in range(3):
        again.run(steps.append, 4, 256)
    assert again.num_captured == 1 and len(replays) == 4


def test_int8_is_not_captured() -> None:
    assert can_be_captured(SimpleNamespace()) and not can_be_captured(SimpleNamespace(is_loaded_in_8bit=True))
    assert StepGraphs(Captures()).num_captured == 0
