"""What is asked of vLLM, told without it; the engine itself is tested by ``make vllm-test``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf.config import LoraConfig, ModelConfig, PpoConfig, RolloutConfig, SamplingConfig, build_config
from rlhf.errors import ConfigError
from rlhf.models import adapters
from rlhf.rollout.vllm.engine import VllmGenerator, VllmSettings
from rlhf.rollout.vllm.requests import AdapterNames, room_for_rank, sampling_arguments, scoring_arguments
from rlhf.stages import ppo_run
from rlhf.workers.group import WorkerGroup
from tests.support.ppo import tiny_config


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


def ppo(tmp_path: Path, rollout: dict[str, Any], **placement: Any) -> PpoConfig:
    tree = {f"rollout.{key}": value for key, value in {"engine": "vllm", **rollout}.items()}
    tree |= {f"placement.{key}": value for key, value in placement.items()}
    return tiny_config(tmp_path / "base", tmp_path / "run", **tree)


@pytest.mark.parametrize("gpus", [1, 0.5, 4])
def test_a_worker_with_other_gpus_than_parts_is_refused(gpus: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"gpus_per_rollout_worker={gpus:g} does not fit rollout.tensor_parallel=2"):
        ppo(tmp_path, {"tensor_parallel": 2, "memory_share": 0.4}, gpus_per_rollout_worker=gpus)
    for fitting in (None, 0, 2):
        ppo(tmp_path, {"tensor_parallel": 2}, gpus_per_rollout_worker=fitting)


def test_a_run_reserves_a_gpu_for_each_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ppo(tmp_path, {"tensor_parallel": 2})
    session: Any = SimpleNamespace(
        config=config, resources={"GPU": 8.0}, reward_models=SimpleNamespace(separate=()), run_dir=tmp_path,
        profiler=SimpleNamespace(watch=lambda group: group), restarts=SimpleNamespace(count=0),
    )  # fmt: skip
    monkeypatch.setattr(
        ppo_run, "reserve", lambda placement, asks, again: {ask.role: ask.resources["GPU"] for ask in asks}
    )
    assert ppo_run.reserve_places(session) == {"policy": 1.0, "rollout": 2.0}
    monkeypatch.setattr(WorkerGroup, "launch", lambda *_, gpus_per_worker, **__: gpus_per_worker)
    assert ppo_run._launch_rollout(session, None, [], 1, 0) == 2.0


def test_an_engine_on_a_shared_gpu_is_told_its_share_of_the_memory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rollout.memory_share=0.85, the default, .* set it, e.g. to 0.4"):
        ppo(tmp_path, {}, gpus_per_rollout_worker=0.5)
    ppo(tmp_path, {"engine": "transformers"}, gpus_per_rollout_worker=0.5)
    ppo(tmp_path, {"memory_share": 0.85}, gpus_per_rollout_worker=0.5)
    for whole in (None, 0, 1):
        ppo(tmp_path, {}, gpus_per_rollout_worker=whole)


def test_who_draws_ahead_cannot_sleep() -> None:
    tree = {"engine": "vllm", "sleep_while_learning": True}
    with pytest.raises(ConfigError, match=r"rollout.overlap=2 draws while the ranks learn, .* set overlap to 0"):
        build_config(RolloutConfig, {**tree, "overlap": 2}, source="a file")
    build_config(RolloutConfig, tree, source="a file")
