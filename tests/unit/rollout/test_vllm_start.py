"""What a vLLM engine is started with and asked for, seen by a stand-in for vLLM."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf.config import LoraConfig, ModelConfig, RolloutConfig, SamplingConfig
from rlhf.errors import ConfigError
from rlhf.models import adapters
from rlhf.rollout.protocol import PromptTask
from rlhf.rollout.vllm.engine import VllmGenerator, VllmSettings

VOCABULARY = 100


class StandIn:
    """Takes the place of ``vllm.LLM`` and keeps what it was given."""

    arguments: dict[str, Any]

    biases: list[dict[int, float] | None]

    def __init__(self, **arguments: Any) -> None:
        StandIn.arguments, StandIn.biases = arguments, []
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(get_vocab_size=lambda: VOCABULARY))

    def generate(self, prompts: list[Any], params: list[dict[str, Any]], **_: Any) -> list[Any]:
        """Every response is token 1."""
        StandIn.biases += [one["logit_bias"] for one in params]
        entry = {1: SimpleNamespace(logprob=-1.0)}
        output = SimpleNamespace(token_ids=[1], logprobs=[entry], finish_reason="stop")
        return [SimpleNamespace(outputs=[output]) for _ in prompts]


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module, lora, request = (ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    vars(module).update(LLM=StandIn, SamplingParams=dict)
    vars(request).update(LoRARequest=SimpleNamespace)
    for one in (module, lora, request):
        monkeypatch.setitem(sys.modules, one.__name__, one)
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


def test_a_pad_token_that_the_base_does_not_embed_is_not_suppressed() -> None:
    engine = start(VllmSettings(64), suppress_ids=(VOCABULARY - 1, VOCABULARY))
    engine.use_bare_base()
    assert engine.generate([PromptTask("a", (5,), 7)], SamplingConfig())[0].response_ids == (1,)
    assert engine.score_tokens([5], [1], 1.0) == [-1.0]
    assert StandIn.biases == [{VOCABULARY - 1: -100.0}] * 2


@pytest.mark.parametrize("trusted", [False, True])
def test_code_of_a_model_runs_only_where_it_is_trusted(trusted: bool) -> None:
    model = ModelConfig(name="x", revision="a" * 40, trust_remote_code=trusted)
    start(VllmSettings.of(RolloutConfig(engine="vllm"), model))
    assert StandIn.arguments["trust_remote_code"] is trusted
    assert StandIn.arguments["code_revision"] == ("a" * 40 if trusted else None)


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_adapters_in_float32_are_refused_on_a_gpu(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout, model = RolloutConfig(engine="vllm"), ModelConfig(name="x", dtype=dtype)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu = VllmSettings.of(rollout, model)
    start(on_cpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    start(VllmSettings.of(rollout, ModelConfig(name="x", dtype="auto")))
    assert on_cpu.dtype == "float32" and StandIn.arguments["dtype"] == "bfloat16"
    with pytest.raises(ConfigError, match=r"not in model.dtype=float32: set model.dtype=bfloat16"):
        start(on_cpu)
    VllmGenerator("somewhere", None, on_cpu, stop_ids=(1,))
