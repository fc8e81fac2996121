"""The vLLM engine on a real vLLM (``make vllm-test``), held against the transformers engine."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.config import LoraConfig, SamplingConfig
from rlhf.errors import ConfigError, WeightSyncError
from rlhf.models import adapters
from rlhf.models.roles import POLICY
from rlhf.rollout.protocol import PromptTask
from rlhf.rollout.transformers_engine import TransformersGenerator
from rlhf.rollout.vllm.engine import VllmGenerator, VllmSettings
from rlhf.weights.snapshot import Snapshot, pack
from tests.support.tiny import build_model

PAD, EOS = 2, 1
STOPS = (EOS, *range(10, 299, 12))
CONFIG = adapters.peft_config(LoraConfig(r=8, alpha=16))
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vLLM's attention needs heads of at least 32 numbers."""
    torch.set_num_threads(1)
    shape = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1}
    return build_model(tmp_path_factory.mktemp("vllm") / "base", **shape)


@pytest.fixture(scope="module")
def engine(base: Path) -> Iterator[VllmGenerator]:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    settings = VllmSettings(
        max_sequence_tokens=128,
        max_running=64,
        dtype="float32",
        extra={"enforce_eager": True, "enable_prefix_caching": True},
    )
    found = VllmGenerator(str(base), CONFIG, settings, stop_ids=STOPS, suppress_ids=(PAD,))
    with pytest.raises(WeightSyncError, match="no adapter has been installed"):
        found.generate(tasks(1), SamplingConfig())
    yield found
    found.close()


@pytest.fixture(scope="module")
def peer(base: Path) -> TransformersGenerator:
    model = AutoModelForCausalLM.from_pretrained(base)
    return TransformersGenerator(model, CONFIG, stop_ids=STOPS, pad_id=PAD, microbatch=32, suppress_ids=(PAD,))


def snapshot(base: Path, version: int, seed: int = 1) -> Snapshot:
    model = adapters.attach(AutoModelForCausalLM.from_pretrained(base), CONFIG, POLICY)
    generator = torch.Generator().manual_seed(seed)
    state = {k: torch.randn(p.shape, generator=generator) * 0.1 for k, p in adapters.adapter_parameters(model, POLICY)}
    return pack(state, version)


def tasks(count: int = 24) -> list[PromptTask]:
    rng = np.random.default_rng(0)
    prompts = [tuple(int(t) for t in rng.integers(3, 290, rng.integers(4, 20))) for _ in range(count)]
    return [PromptTask(f"t{i}", prompt, seed=1000 + i) for i, prompt in enumerate(prompts)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_canary_agrees_with_the_transformers_engine(
    temperature: float, base: Path, engine: VllmGenerator, peer: TransformersGenerator
) -> None:
    for version in (0, 1):
        published = snapshot(base, version, seed=version)
        assert engine.install(published) == peer.install(published) == published.sha256
        prompt, response = list(range(20, 40)), [50, 60, 70, 80, 90, EOS]
        ours = engine.score_tokens(prompt, response, temperature)
        assert ours == pytest.approx(peer.score_tokens(prompt, response, temperature), abs=TOLERANCE)


def test_reported_logprobs_are_those_of_the_policy_at_the_temperature(
    base: Path, engine: VllmGenerator, peer: TransformersGenerator
) -> None:
    published = snapshot(base, 3)
    engine.install(published)
    peer.install(published)
    drawn = engine.generate(tasks(), SamplingConfig(max_response_tokens=20, temperature=0.8))
    assert {(r.version, r.adapter_sha256) for r in drawn} == {(3, published.sha256)}
    for rollout in drawn:
        expected = peer.score_tokens(list(rollout.prompt_ids), list(rollout.response_ids), 0.8)
        assert list(rollout.logprobs) == pytest.approx(expected, abs=TOLERANCE)
        body, last = rollout.response_ids[:-1], rollout.response_ids[-1]
        assert not set(body) & set(STOPS) and PAD not in rollout.response_ids
        assert rollout.finished == (last in STOPS)
        assert rollout.finished or len(rollout.response_ids) == 20
    assert len({len(r.response_ids) for r in drawn}) > 3


def test_seeds_make_the_samples_whatever_else_runs(base: Path, engine: VllmGenerator) -> None:
    engine.install(snapshot(base, 4))
    sampling = SamplingConfig(max_response_tokens=16)
    together = engine.generate(tasks(), sampling)
    backwards = engine.generate(tasks()[::-1], sampling)[::-1]
    alone = [engine.generate([task], sampling)[0] for task in tasks(4)]
    assert [r.response_ids for r in together] == [r.response_ids for r in backwards]
    assert [r.response_ids for r in together[:4]] == [r.response_ids for r in alone]
    prompt = tasks(1)[0].prompt_ids
    pair = engine.generate(
        [PromptTask("a", prompt, 5), PromptTask("b", prompt, 5), PromptTask("c", prompt, 6)], sampling
    )
    assert pair[0].response_ids == pair[1].response_ids != pair[2].response_ids


def test_a_new_version_is_what_answers_also_after_a_cached_prefix(
    base: Path, engine: VllmGenerator, peer: TransformersGenerator
) -> None:
    """The same long prompt before and after: a prefix cache that mixed versions up would show in the log-probs."""
    prompt, response = [int(t) for t in np.random.default_rng(3).integers(3, 290, 64)], [50, 60, 70]
    seen, names = [], []
    for version, seed in ((5, 1), (6, 2), (5, 1), (5, 3)):  # a version that comes again, and one with other bytes
        published = snapshot(base, version, seed=seed)
        engine.install(published)
        peer.install(published)
        names.append(engine.adapter_name)
        seen.append(engine.score_tokens(prompt, response, 1.0))
        assert seen[-1] == pytest.approx(peer.score_tokens(prompt, response, 1.0), abs=TOLERANCE)
    assert len(set(names)) == 4, "a name was used twice"
    assert math.dist(seen[0], seen[1]) > 0.01 and math.dist(seen[2], seen[3]) > 0.01
    assert seen[0] == pytest.approx(seen[2], abs=TOLERANCE)
    assert engine._llm.collective_rpc("adapter_numbers") == [[engine._adapter.number]]  # type: ignore[union-attr]


def test_the_bare_base(base: Path, engine: VllmGenerator, peer: TransformersGenerator) -> None:
    engine.install(snapshot(base, 7))
    peer.install(snapshot(base, 7))
    with_adapter = engine.score_tokens([5, 6, 7], [50, 60], 1.0)
    engine.use_bare_base()
    peer.use_bare_base()
    bare = engine.score_tokens([5, 6, 7], [50, 60], 1.0)
    assert bare == pytest.approx(peer.score_tokens([5, 6, 7], [50, 60], 1.0), abs=TOLERANCE)
    assert math.dist(bare, with_adapter) > 0.01
    assert engine.generate(tasks(1), SamplingConfig(max_response_tokens=3))[0].adapter_sha256 == "base"


def test_a_refused_adapter_leaves_the_old_one_serving(base: Path, engine: VllmGenerator) -> None:
    engine.install(snapshot(base, 8))
    before = engine.score_tokens([5, 6, 7], [50, 60], 1.0)
    broken = snapshot(base, 9, seed=4)
    broken.buffer[100] ^= 1
    with pytest.raises(WeightSyncError, match="other bytes"):
        engine.install(broken)
    foreign = pack({"model.layers.0.mlp.norm.lora_A.weight": torch.zeros(8, 128),
                    "model.layers.0.mlp.norm.lora_B.weight": torch.zeros(128, 8)}, 9)  # fmt: skip
    with pytest.raises(WeightSyncError, match="layers that vLLM does not adapt"):
        engine.install(foreign)
    assert engine.version == 8 and engine.score_tokens([5, 6, 7], [50, 60], 1.0) == before


def test_sleeping_where_it_is_not_possible_changes_nothing(base: Path, engine: VllmGenerator) -> None:
    engine.install(snapshot(base, 10))
    before = engine.score_tokens([5, 6, 7], [50, 60], 1.0)
    engine.sleep()
    assert engine.score_tokens([5, 6, 7], [50, 60], 1.0) == before
    engine.wake()


def test_truncated_sampling_is_refused(engine: VllmGenerator) -> None:
    with pytest.raises(ConfigError, match="after truncation"):
        engine.generate(tasks(1), SamplingConfig(top_p=0.9))
