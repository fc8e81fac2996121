"""Batched sampling with a cache against a sampler that knows neither batches nor caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, MistralConfig, Qwen3Config

from rlhf.config import LoraConfig, SamplingConfig
from rlhf.errors import AbandonedError, NumericsError, WeightSyncError
from rlhf.models import adapters
from rlhf.models.roles import POLICY
from rlhf.rollout import decoding
from rlhf.rollout.protocol import PromptTask, Rollout
from rlhf.rollout.transformers_engine import TransformersGenerator
from rlhf.weights.snapshot import Snapshot, pack
from rlhf.workers.context import WorkerContext
from tests.support.naive import sample

PAD, EOS = 2, 1
STOPS = (EOS, *range(10, 299, 12))
CONFIG = adapters.peft_config(LoraConfig(r=4, alpha=8))


def snapshot(
    base: Path, version: int = 0, seed: int = 1, scale: float = 0.2, dtype: torch.dtype = torch.float32
) -> Snapshot:
    model = adapters.attach(AutoModelForCausalLM.from_pretrained(base), CONFIG, POLICY)
    generator = torch.Generator().manual_seed(seed)
    state = {
        k: (torch.randn(p.shape, generator=generator) * scale).to(dtype)
        for k, p in adapters.adapter_parameters(model, POLICY)
    }
    return pack(state, version)


def engine(
    base: Path,
    *,
    microbatch: int = 64,
    install: bool = True,
    dtype: torch.dtype = torch.float32,
    adapted: bool = True,
) -> TransformersGenerator:
    model, config = AutoModelForCausalLM.from_pretrained(base, dtype=dtype), CONFIG if adapted else None
    found = TransformersGenerator(model, config, stop_ids=STOPS, pad_id=PAD, microbatch=microbatch, suppress_ids=(PAD,))
    if install and adapted:
        found.install(snapshot(base, dtype=dtype))
    return found


def tasks(count: int = 24) -> list[PromptTask]:
    rng = np.random.default_rng(0)
    prompts = [tuple(int(t) for t in rng.integers(3, 290, rng.integers(1, 9))) for _ in range(count)]
    return [PromptTask(f"t{i}", prompt, seed=1000 + i) for i, prompt in enumerate(prompts)]


@pytest.fixture(scope="module")
def drawn(tiny_base: Path) -> list[Rollout]:
    return engine(tiny_base).generate(tasks(), SamplingConfig(max_response_tokens=20))


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(max_response_tokens=20),
        SamplingConfig(max_response_tokens=20, temperature=0.6),
        SamplingConfig(max_response_tokens=20, top_k=5),
        SamplingConfig(max_response_tokens=20, top_p=0.7),
        SamplingConfig(max_response_tokens=20, top_p=0.8, top_k=12, temperature=1.3),
    ],
    ids=["plain", "cool", "top_k", "top_p", "both"],
)
def test_every_token_equals_the_naive_sampler_s(sampling: SamplingConfig, tiny_base: Path) -> None:
    some = tasks(10)
    generator = engine(tiny_base)
    for task, rollout in zip(some, generator.generate(some, sampling), strict=True):
        tokens, logprobs = sample(generator._model, task, sampling, stops=STOPS, pad=PAD)
        assert list(rollout.response_ids) == tokens
        assert np.allclose(rollout.logprobs, logprobs, atol=2e-5)


def test_lengths_are_ragged_and_the_stop_token_is_kept(drawn: list[Rollout]) -> None:
    lengths = {len(r.response_ids) for r in drawn}
    assert len(lengths) > 3 and any(r.finished for r in drawn) and not all(r.finished for r in drawn)
    for rollout in drawn:
        body, last = rollout.response_ids[:-1], rollout.response_ids[-1]
        assert not set(body) & set(STOPS)
        assert rollout.finished == (last in STOPS)
        assert rollout.finished or len(rollout.response_ids) == 20
        assert PAD not in rollout.response_ids
        assert len(rollout.logprobs) == len(rollout.response_ids)


def test_logprobs_are_those_of_teacher_forcing(drawn: list[Rollout], tiny_base: Path) -> None:
    model = engine(tiny_base)._model
    worst = 0.0
    for rollout in drawn:
        ids = torch.tensor([rollout.prompt_ids + rollout.response_ids])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1]
        logits[:, PAD] = -torch.inf
        expected = -F.cross_entropy(logits, ids[0, 1:], reduction="none")[len(rollout.prompt_ids) - 1 :]
        worst = max(worst, float((expected - torch.tensor(rollout.logprobs)).abs().max()))
    assert worst < 2e-5


@pytest.mark.parametrize("arrangement", ["reversed", "alone", "microbatch_3", "microbatch_1"])
def test_company_does_not_matter(arrangement: str, drawn: list[Rollout], tiny_base: Path) -> None:
    sampling = SamplingConfig(max_response_tokens=20)
    if arrangement == "reversed":
        found = engine(tiny_base).generate(tasks()[::-1], sampling)[::-1]
    elif arrangement == "alone":
        generator = engine(tiny_base)
        found = [generator.generate([task], sampling)[0] for task in tasks()]
    else:
        found = engine(tiny_base, microbatch=int(arrangement[-1])).generate(tasks(), sampling)
    for ours, theirs in zip(drawn, found, strict=True):
        assert (ours.key, ours.response_ids, ours.finished) == (theirs.key, theirs.response_ids, theirs.finished)
        assert np.allclose(ours.logprobs, theirs.logprobs, atol=2e-5)


def test_more_room_only_continues(drawn: list[Rollout], tiny_base: Path) -> None:
    """A response never depends on the length limit beyond being cut there."""
    short = engine(tiny_base).generate(tasks(), SamplingConfig(max_response_tokens=7))
    for long, cut in zip(drawn, short, strict=True):
        assert long.response_ids[:7] == cut.response_ids
        assert cut.finished == (long.finished and len(long.response_ids) <= 7)


def passes(generator: TransformersGenerator) -> list[tuple[int, int]]:
    """(rows, tokens per row) of every pass through the model from now on."""
    shapes: list[tuple[int, int]] = []

    def note(module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        shapes.append(tuple(kwargs["input_ids"].shape))  # type: ignore[arg-type]

    generator._causal.model.register_forward_pre_hook(note, with_kwargs=True)
    steps: Any = generator._slot_words["steps"]
    logits = steps.logits

    def step(token: torch.Tensor, *others: Any) -> torch.Tensor:
        if steps.serves:  # before, the model makes the same step
            shapes.append((len(token), 1))
        found: torch.Tensor = logits(token, *others)
        return found

    steps.logits = step
    return shapes


def test_decoding_stops_early_and_drops_finished_rows(tiny_base: Path) -> None:
    generator = engine(tiny_base)
    shapes = passes(generator)
    found = generator.generate(tasks(16), SamplingConfig(max_response_tokens=200, temperature=2.0))
    sizes = [rows for rows, _ in shapes]
    assert len(sizes) == max(len(r.response_ids) for r in found) < 200
    assert sizes[0] == 16 and sizes[-1] < 8
    assert sizes == sorted(sizes, reverse=True)


def test_ended_samples_make_room_for_waiting_ones(tiny_base: Path) -> None:
    """Rows computed in steps stay near the tokens drawn; batch by batch every row waits for its batch's longest."""
    generator = engine(tiny_base, microbatch=8)
    shapes = passes(generator)
    found = generator.generate(tasks(96), SamplingConfig(max_response_tokens=60, temperature=2.0))
    drawn_in_steps = sum(len(r.response_ids) - 1 for r in found)
    stepped = sum(rows for rows, width in shapes if width == 1)
    batches = [found[i : i + 8] for i in range(0, 96, 8)]
    waiting = sum(8 * max(len(r.response_ids) for r in batch) for batch in batches)
    assert drawn_in_steps <= stepped < 1.25 * drawn_in_steps < waiting
    assert max(rows for rows, _ in shapes) == 8


def test_equal_prompts_are_read_once(tiny_base: Path) -> None:
    prompt = tasks(1)[0].prompt_ids
    many = [PromptTask(f"k{i}", prompt, seed=i) for i in range(12)]
    generator = engine(tiny_base)
    shapes = passes(generator)
    found = generator.generate(many, SamplingConfig(max_response_tokens=10))
    assert shapes[0] == (1, len(prompt)) and shapes[1][0] == 12
    alone = [engine(tiny_base).generate([task], SamplingConfig(max_response_tokens=10))[0] for task in many[:4]]
    assert [r.response_ids for r in alone] == [r.response_ids for r in found[:4]]


@pytest.mark.parametrize("microbatch", [3, 64])
def test_rare_looks_change_nothing(
    microbatch: int, drawn: list[Rollout], tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: several steps pass before anybody asks which samples have ended."""
    monkeypatch.setitem(decoding.LOOK_EVERY, "cpu", 5)
    found = engine(tiny_base, microbatch=microbatch).generate(tasks(), SamplingConfig(max_response_tokens=20))
    assert [(r.response_ids, r.finished) for r in found] == [(r.response_ids, r.finished) for r in drawn]
    assert all(np.allclose(a.logprobs, b.logprobs, atol=2e-5) for a, b in zip(found, drawn, strict=True))


def test_no_tasks_need_no_pass(tiny_base: Path) -> None:
    assert engine(tiny_base).generate([], SamplingConfig()) == []


def test_one_token_is_enough(tiny_base: Path) -> None:
    found = engine(tiny_base, microbatch=3).generate(tasks(10), SamplingConfig(max_response_tokens=1))
    assert [len(r.response_ids) for r in found] == [1] * 10


def test_slots_grow_with_long_responses(tiny_base: Path) -> None:
    """More columns than were made at the start, and more than one growth."""
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    generator = TransformersGenerator(model, None, stop_ids=(EOS,), pad_id=PAD, microbatch=2, suppress_ids=(PAD, EOS))
    found = generator.generate(tasks(3), SamplingConfig(max_response_tokens=200))
    for rollout in found:
        again = generator.score_tokens(list(rollout.prompt_ids), list(rollout.response_ids), 1.0)
        assert len(rollout.logprobs) == 200 and np.allclose(again, rollout.logprobs, atol=5e-5)


FAMILIES = {
    "qwen3": (Qwen3Config, {}, True),
    "mistral_window": (MistralConfig, {"sliding_window": 8}, False),
    "gemma3": (Gemma3TextConfig, {"sliding_window": 8}, False),
    "gpt2": (GPT2Config, {"n_embd": 64, "n_layer": 2, "n_head": 4}, True),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_report_their_own_logprobs(family: str) -> None:
    """Models whose layers fit into slots, and those that take the other way, against teacher forcing."""
    kind, changes, in_slots = FAMILIES[family]
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.15, "vocab_size": 300}
    shape |= {"pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": EOS}
    model = AutoModelForCausalLM.from_config(kind(**(shape | changes)))
    generator = TransformersGenerator(model, None, stop_ids=STOPS, pad_id=PAD, microbatch=4, suppress_ids=(PAD,))
    assert generator._slots is in_slots
    found = generator.generate(tasks(10), SamplingConfig(max_response_tokens=16))
    assert len({len(r.response_ids) for r in found}) > 2
    for rollout in found:
        again = generator.score_tokens(list(rollout.prompt_ids), list(rollout.response_ids), 1.0)
        assert np.allclose(again, rollout.logprobs, atol=5e-5)


def test_both_ways_of_decoding_draw_the_same(drawn: list[Rollout], tiny_base: Path) -> None:
    generator = engine(tiny_base)
    generator._slots = False
    other = generator.generate(tasks(), SamplingConfig(max_response_tokens=20))
    assert [r.response_ids for r in other] == [r.response_ids for r in drawn]


def test_low_temperature_is_greedy(tiny_base: Path) -> None:
    generator = engine(tiny_base)
    rollout = generator.generate(tasks(1), SamplingConfig(max_response_tokens=8, temperature=1e-4))[0]
    ids = list(rollout.prompt_ids)
    for token in rollout.response_ids:
        with torch.no_grad():
            logits = generator._model(torch.tensor([ids])).logits[0, -1]
        logits[PAD] = -torch.inf
        assert token == int(logits.argmax())
        ids.append(token)


def test_seeds_make_the_samples(tiny_base: Path) -> None:
    prompt = tasks(1)[0].prompt_ids
    sampling = SamplingConfig(max_response_tokens=12)
    same = engine(tiny_base).generate([PromptTask("a", prompt, 5), PromptTask("b", prompt, 5)], sampling)
    other = engine(tiny_base).generate([PromptTask("a", prompt, 6)], sampling)
    assert same[0].response_ids == same[1].response_ids != other[0].response_ids


def test_score_tokens_repeats_what_generation_reported(drawn: list[Rollout], tiny_base: Path) -> None:
    generator = engine(tiny_base)
    for rollout in drawn[:4]:
        found = generator.score_tokens(list(rollout.prompt_ids), list(rollout.response_ids), 1.0)
        assert np.allclose(found, rollout.logprobs, atol=2e-5)


def test_versions(tiny_base: Path) -> None:
    generator = engine(tiny_base, install=False)
    assert generator.version == -1
    with pytest.raises(WeightSyncError, match="no adapter has been installed"):
        generator.generate(tasks(1), SamplingConfig())
    first, second = snapshot(tiny_base, 4), snapshot(tiny_base, 5, seed=2)
    assert generator.install(first) == first.sha256 and generator.version == 4
    before = generator.generate(tasks(3), SamplingConfig(max_response_tokens=6))
    assert {(r.version, r.adapter_sha256) for r in before} == {(4, first.sha256)}
    assert generator.install(second) == second.sha256
    after = generator.generate(tasks(3), SamplingConfig(max_response_tokens=6))
    assert {(r.version, r.adapter_sha256) for r in after} == {(5, second.sha256)}
    assert [r.logprobs for r in before] != [r.logprobs for r in after]
    tokens, _ = sample(generator._model, tasks(1)[0], SamplingConfig(max_response_tokens=6), stops=STOPS, pad=PAD)
    assert list(after[0].response_ids) == tokens


def test_foreign_and_tampered_adapters_are_refused_and_leave_the_version_alone(tiny_base: Path) -> None:
    generator = engine(tiny_base)
    whole = snapshot(tiny_base, 7)
    whole.buffer[0] ^= 1
    with pytest.raises(WeightSyncError, match="other bytes"):
        generator.install(whole)
    with pytest.raises(WeightSyncError, match="missing"):
        generator.install(pack({"lora_x": torch.zeros(2)}, 7))
    assert generator.version == 0


def test_a_diverged_adapter_is_named(tiny_base: Path) -> None:
    generator = engine(tiny_base)
    with torch.no_grad():
        for _, parameter in adapters.adapter_parameters(generator._model, POLICY):
            parameter.fill_(float("nan"))
    with pytest.raises(NumericsError, match="logits are not finite"):
        generator.generate(tasks(1), SamplingConfig(max_response_tokens=3))


def test_a_base_without_adapter_draws_as_it_is(tiny_base: Path) -> None:
    generator, sampling, some = (
        engine(tiny_base, adapted=False, microbatch=4),
        SamplingConfig(max_response_tokens=12),
        9,
    )
    own = AutoModelForCausalLM.from_pretrained(tiny_base)  # by its own layers
    for task, rollout in zip(tasks(some), generator.generate(tasks(some), sampling), strict=True):
        assert (rollout.version, rollout.adapter_sha256) == (0, "base")
        ids, logprobs = sample(own, task, sampling, stops=STOPS, pad=PAD)
        assert list(rollout.response_ids) == ids
        assert rollout.logprobs == pytest.approx(logprobs, abs=2e-5)


def test_whole_weights_are_waited_for_and_drawn_from(tiny_base: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_base)
    settings: dict[str, Any] = {"stop_ids": STOPS, "pad_id": PAD, "microbatch": 4, "suppress_ids": (PAD,)}
    generator = TransformersGenerator(model, None, follows_trainer=True, **settings)
    with pytest.raises(WeightSyncError, match="no weights have been installed"):
        generator.generate(tasks(1), SamplingConfig())
    other: Any = AutoModelForCausalLM.from_pretrained(tiny_base)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    generator.install(pack(dict(model.named_parameters()), 2))
    generator.generate(
        tasks(3), SamplingConfig(max_response_tokens=6)
    )  # copies of these weights are not drawn from later
    state = {name: parameter.detach() for name, parameter in other.named_parameters()}
    names = list(state)
    parts = [pack({name: state[name] for name in group}, 3) for group in (names[:5], names[5:])]
    sha = generator.install(*parts)
    found = generator.generate(tasks(3), SamplingConfig(max_response_tokens=6))
    assert {(r.version, r.adapter_sha256) for r in found} == {(3, sha)}
    wanted = TransformersGenerator(other, None, **settings).generate(tasks(3), SamplingConfig(max_response_tokens=6))
    assert [r.response_ids for r in found] == [r.response_ids for r in wanted]


def test_work_that_was_left_half_done_changes_nothing_that_is_drawn_later(tiny_base: Path) -> None:
    found, context, passes = engine(tiny_base, microbatch=4), WorkerContext("rollout", 0, 1, ""), []
    sampling = SamplingConfig(max_response_tokens=12)
    expected = found.generate(tasks(), sampling)

    def ask_at_the_fifth() -> None:
        passes.append(context.abandoned)
        context.abandoned = len(passes) == 5
        context.beat()

    found._slot_words["beat"] = ask_at_the_fifth
    with pytest.raises(AbandonedError):
        found.generate(tasks(), sampling)
    assert len(passes) == 5, "at the next sign of progress"
    assert found.generate(tasks(), sampling) == expected
