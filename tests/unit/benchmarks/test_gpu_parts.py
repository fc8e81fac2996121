"""Decoding in benchmarks/gpu_parts.py, on a small model without a GPU; and that passes are kept when it fails."""

from __future__ import annotations

import copy
import gc
import sys
import weakref
from types import SimpleNamespace
from typing import Any

import gpu_parts
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from rlhf.rollout.transformers_engine import TransformersGenerator


def small_base() -> Any:
    config = Qwen2Config(
        vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(gpu_parts, "WORDS", range(3, 200))
    monkeypatch.setattr(gpu_parts, "PROMPT", 8)


def test_both_ways_of_decoding_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, int]] = []
    built: list[weakref.ref[Any]] = []

    class Engine(TransformersGenerator):
        def __init__(self, *args: Any, graphs: bool = True, **kwargs: Any) -> None:
            gc.collect()
            asked.append((graphs, sum(one() is not None for one in built)))
            super().__init__(*args, graphs=graphs, **kwargs)

    def make() -> Any:
        base = small_base()
        built.append(weakref.ref(base))
        return base

    monkeypatch.setattr(gpu_parts, "TransformersGenerator", Engine)
    found = gpu_parts.decode(make, 4, 8)
    assert list(found) == ["launched", "replayed"]
    assert all(part["prompts_seconds"] >= 0 and "ms_per_step" in part for part in found.values())
    assert asked == [(False, 1), (True, 1)], "one base at a time"


def test_passes_are_written_before_decoding_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[dict[str, Any]] = []

    def failing(*_: Any) -> None:
        raise RuntimeError("out of memory")

    device = SimpleNamespace(name="X", total_memory=2**37)
    for name, value in (("is_available", lambda: True), ("get_device_properties", lambda _: device)):
        monkeypatch.setattr(torch.cuda, name, value)
    replaced: dict[str, Any] = {
        "matrix_peak": lambda _: 1e15, "measure_passes": lambda *_, **__: ({"halves": {"learn_1": {}}}, [28, 28]),
        "decode": failing, "save": lambda _, result: written.append(copy.deepcopy(result)),
    }  # fmt: skip
    for name, value in replaced.items():
        monkeypatch.setattr(gpu_parts, name, value)
    monkeypatch.setattr(sys, "argv", ["gpu_parts.py"])
    with pytest.raises(RuntimeError, match="out of memory"):
        gpu_parts.main()
    assert [one["cases"] for one in written] == [{"halves": {"learn_1": {}}}]
