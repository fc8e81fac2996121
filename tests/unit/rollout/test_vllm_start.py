"""What a vLLM engine is started with and asked for, seen by a stand-in for vLLM."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rlhf.config import LoraConfig
from rlhf.models import adapters
from rlhf.rollout.vllm.engine import VllmGenerator, VllmSettings

VOCABULARY = 100


class StandIn:
    """Takes the place of ``vllm.LLM`` and keeps what it was given."""

    arguments: dict[str, Any]

    def __init__(self, **arguments: Any) -> None:
        StandIn.arguments = arguments
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(get_vocab_size=lambda: VOCABULARY))


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("vllm")
    module.LLM = StandIn
    monkeypatch.setitem(sys.modules, "vllm", module)
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_LEVEL"):  # what the engine sets ends with the test
        monkeypatch.setenv(name, "0")


def start(settings: VllmSettings, suppress_ids: tuple[int, ...] = ()) -> VllmGenerator:
    config = adapters.peft_config(LoraConfig(r=4))
    return VllmGenerator("somewhere", config, settings, stop_ids=(1,), suppress_ids=suppress_ids)


@pytest.mark.parametrize(("parts", "backend"), [(1, None), (2, "mp")])
def test_parts_of_one_model_are_processes_of_the_engine(parts: int, backend: str | None) -> None:
    start(VllmSettings(64, tensor_parallel=parts))
    assert StandIn.arguments["tensor_parallel_size"] == parts
    assert StandIn.arguments.get("distributed_executor_backend") == backend
