"""What is asked of vLLM, told without it; the engine itself is tested by ``make vllm-test``."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from rlhf.config import LoraConfig, ModelConfig, RolloutConfig, SamplingConfig, build_config
from rlhf.errors import ConfigError
from rlhf.models import adapters
from rlhf.rollout.vllm.engine import VllmGenerator, VllmSettings
from rlhf.rollout.vllm.requests import AdapterNames, room_for_rank, sampling_arguments, scoring_arguments


def test_no_name_and_no_number_comes_twice() -> None:
    names = AdapterNames()
    given = [names.next(version, sha) for version in (0, 1, 1, 0) for sha in ("a" * 64, "a" * 64, "b" * 64)]
    assert len({name.text for name in given}) == len({name.number for name in given}) == 12
    assert given[0].number == 1 and given[0].text.startswith("policy-v0-aaaaaaaaaaaa-")


def test_sampling_arguments() -> None:
    sampling = SamplingConfig(temperature=0.7, max_response_tokens=9)
    found = sampling_arguments(sampling, 2**64 - 1, stop_ids=(1, 5), suppress_ids=(2,))
    assert found == {
        "temperature": 0.7, "max_tokens": 9, "seed": 2**63 - 1, "stop_token_ids": [1, 5], "ignore_eos": True,
        "logit_bias": {2: -100.0}, "logprobs": 0, "detokenize": False,
    }  # fmt: skip
    assert sampling_arguments(sampling, 3, stop_ids=(1,), suppress_ids=())["logit_bias"] is None


@pytest.mark.parametrize("sampling", [SamplingConfig(top_p=0.9), SamplingConfig(top_k=4)])
def test_truncated_sampling_is_refused(sampling: SamplingConfig) -> None:
    with pytest.raises(ConfigError, match="after truncation"):
        sampling_arguments(sampling, 0, stop_ids=(1,), suppress_ids=())


def test_scoring_asks_for_one_token_at_the_temperature() -> None:
    found = scoring_arguments(77, 0.5, suppress_ids=(2,))
    assert found["logprob_token_ids"] == [77] and found["temperature"] == 0.5 and found["max_tokens"] == 1


def test_ranks() -> None:
    assert [room_for_rank(r) for r in (1, 4, 8, 9, 16, 100)] == [1, 8, 8, 16, 16, 128]
    with pytest.raises(ConfigError, match=r"an adapter of rank 600 .* is more than vLLM's 512"):
        room_for_rank(600)


def test_settings_come_from_the_run() -> None:
    rollout = RolloutConfig(engine="vllm", tensor_parallel=2, max_prompt_tokens=100, max_response_tokens=28)
    found = VllmSettings.of(rollout, ModelConfig(name="x", dtype="bfloat16"))
    assert (found.max_sequence_tokens, found.tensor_parallel, found.dtype) == (128, 2, "bfloat16")
    with pytest.raises(ConfigError, match="holds its base unquantized"):
        VllmSettings.of(rollout, ModelConfig(name="x", quantization="nf4"))


def test_config_refuses_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"rollout.tensor_parallel needs rollout.engine=vllm"):
        build_config(RolloutConfig, {"tensor_parallel": 2}, source="a file")
    with pytest.raises(ConfigError, match="needs top_p=1"):
        build_config(RolloutConfig, {"engine": "vllm", "top_p": 0.9}, source="a file")


def test_other_methods_are_refused_by_name() -> None:
    config = adapters.peft_config(LoraConfig(method="dora"))
    with pytest.raises(ConfigError, match=r"serves the methods lora and rslora, not lora.method=dora"):
        VllmGenerator("nowhere", config, VllmSettings(64), stop_ids=(1,))


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_a_missing_vllm_is_named() -> None:
    with pytest.raises(ConfigError, match=r"not installed here .* pip install 'rlhf\[vllm\]'"):
        VllmGenerator("nowhere", None, VllmSettings(64), stop_ids=(1,))
