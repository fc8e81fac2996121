"""Layers in two autograd steps against the same layers by their operations, with and without compiled kernels."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rlhf.models import adapters, blocks, halved, mixed, packing
from rlhf.models.kernels import calls, decoding
from rlhf.rollout.slots import SlotCache, slot_attention
from tests.unit.models.test_mixed import NAMES, ragged, two_adapters

SMALL: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.2,
}  # fmt: skip


@pytest.fixture(params=["compiled", "plain"])
def _either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "plain":
        monkeypatch.setattr(calls, "library", lambda: None)
    else:
        assert calls.library() is not None, "make setup compiles the kernels"


def make(model: Any, *, shorter: bool) -> tuple[Any, mixed.Mix]:
    """The model with mixed adapters, ready for packed rows."""
    mix = mixed.Mix()
    assert packing.enable(model.get_base_model())
    mixed.install(model, mix)
    if shorter:
        assert blocks.install(model, mix) == 2
    return model, mix


def packed() -> tuple[dict[str, Any], tuple[int, ...]]:
    """The second adapter's sequences end a token earlier."""
    ids, mask = ragged()
    return packing.pack(ids, [mask, packing.without_last(mask)])


def run(model: Any, mix: mixed.Mix) -> Tensor:
    """Hidden states of both adapters' tokens, (tokens, hidden)."""
    words, counts = packed()
    mix.parts = tuple(zip(NAMES, counts, strict=True))
    return model.get_base_model().model(**words).last_hidden_state[0]


def gradients(model: Any, states: Tensor) -> dict[str, Tensor]:
    states.mul(torch.randn(states.shape, generator=torch.Generator().manual_seed(5))).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def causal(kind: str, base: Path) -> Any:
    torch.manual_seed(0)
    if kind == "llama":
        return AutoModelForCausalLM.from_pretrained(base)
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(**SMALL, sliding_window=None))
    if kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**SMALL))
        for layer in model.model.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                torch.nn.init.normal_(projection.bias)  # which begin at zero
        return model
    return Qwen3ForCausalLM(Qwen3Config(**SMALL))  # norms queries and keys: its attention stays its own


@pytest.mark.usefixtures("_either")
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_bfloat16_is_as_near_to_float32_as_the_layers_own(kind: str, tiny_base: Path) -> None:
    whole = two_adapters(tiny_base, causal(kind, tiny_base), r=3)
    exact = run(*make(copy.deepcopy(whole), shorter=False))
    plain, shorter = (make(copy.deepcopy(whole).bfloat16(), shorter=halves) for halves in (False, True))
    wanted, found = run(*plain), run(*shorter)
    assert found.dtype == torch.bfloat16
    off = [float((states.float() - exact).norm() / exact.norm()) for states in (wanted, found)]
    assert 0 < off[1] < 1.2 * off[0] < 0.05, off
    expected, mine = gradients(plain[0], wanted), gradients(shorter[0], found)
    assert expected.keys() == mine.keys()
    for name, gradient in expected.items():
        along = torch.nn.functional.cosine_similarity(mine[name].float().flatten(), gradient.float().flatten(), dim=0)
        assert float(along) > 0.99, name


@torch.no_grad()
def decode(model: Any, mix: mixed.Mix, adapter: str, num_steps: int = 4) -> list[Tensor]:
    """Hidden states of some tokens each, after prompts of several lengths."""
    mix.parts = ((adapter, None),)
    causal, prompts = model.get_base_model(), torch.arange(3, 24).view(3, 7)
    column, slots, found = torch.tensor([7, 3, 5]), torch.arange(3), []
    cache = SlotCache(3, 8)
    with slot_attention(causal):
        causal.model(input_ids=prompts, past_key_values=cache, use_cache=True)
        cache.place(slots, slots)
        for step in range(num_steps):
            width = int(column.max()) + 1
            cache.begin_step(column, width)
            seen = (torch.arange(width) <= column[:, None])[:, None, None]
            words = {"attention_mask": seen, "position_ids": column[:, None], "past_key_values": cache}
            ids = torch.tensor([[9], [4], [7]]) + step
            found.append(causal.model(input_ids=ids, use_cache=True, **words).last_hidden_state[:, 0])
            column = column + 1
    return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("adapter", ["a", "none"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_of_decoding_is_the_layer_s_own(
    dtype: torch.dtype, kind: str, adapter: str, threads: int, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layer by layer, each from the same hidden states, keys and values."""
    model, mix = make(two_adapters(tiny_base, causal(kind, tiny_base), r=3).to(dtype), shorter=True)
    steps: list[torch.dtype] = []
    one_call = decoding.decode

    def decode_one(layer: Any, x: Tensor, *rest: Tensor) -> Tensor:
        steps.append(x.dtype)
        return one_call(layer, x, *rest)

    def both(layer: Any, hidden_states: Tensor, **words: Any) -> Tensor:
        before = len(steps)
        found = blocks._forward(layer, hidden_states, **words)
        if len(steps) > before:
            keys, values, column = (t.clone() for t in words["past_key_values"].step_of(layer.self_attn.layer_idx))
            wanted = type(layer).forward(layer, hidden_states, **words)
            own = words["past_key_values"].step_of(layer.self_attn.layer_idx)
            rows = torch.arange(len(column))
            for mine, other in ((keys, own[0]), (values, own[1]), (found, wanted)):
                assert mine.dtype == dtype and blocks._near(mine, other)
            assert blocks._near(keys[rows, :, column], own[0][rows, :, column]), "the new column's"
        return found

    monkeypatch.setattr(decoding, "decode", decode_one)
    for layer in model.get_base_model().model.layers:
        layer.forward = MethodType(both, layer)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        decode(model, mix, adapter)
    finally:
        torch.set_num_threads(before)
    assert steps == [dtype] * 4 * 2, "every step of every layer is one call"


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_bfloat16_decodes_as_near_to_float32_as_the_layers_own(kind: str, tiny_base: Path) -> None:
    whole = two_adapters(tiny_base, causal(kind, tiny_base), r=3).bfloat16()
    exact = decode(*make(copy.deepcopy(whole).float(), shorter=False), "a")
    off = []
    for shorter in (False, True):
        found = decode(*make(copy.deepcopy(whole), shorter=shorter), "a")
        off.append(float((torch.cat(found).float() - torch.cat(exact)).norm() / torch.cat(exact).norm()))
    assert 0 < off[1] < 1.2 * off[0] < 0.05, off


@pytest.mark.usefixtures("_either")
def test_gates_that_are_made_again_change_nothing(tiny_base: Path) -> None:
    own = two_adapters(tiny_base, causal("llama", tiny_base), r=3)
    kept, again = make(copy.deepcopy(own), shorter=True), make(own, shorter=True)
    assert halved.recompute(again[0]) == 2
    saved: list[list[int]] = [[], []]
    found = []
    for sizes, made in zip(saved, (kept, again), strict=True):
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            states = run(*made)
        found.append((states, gradients(made[0], states)))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1].keys() == found[1][1].keys() and len(found[0][1]) > 0
    assert all(torch.equal(gradient, found[1][1][name]) for name, gradient in found[0][1].items())
    tokens, layers, width = len(found[0][0]), 2, 128
    assert sum(saved[0]) - sum(saved[1]) == layers * 2 * tokens * width, "gate and up of every layer"


@pytest.mark.usefixtures("_either")
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_states_and_gradients_are_the_layers_own(kind: str, tiny_base: Path) -> None:
    own = two_adapters(tiny_base, causal(kind, tiny_base), r=3, target_modules=["q_proj", "up_proj", "down_proj"])
    plain, shorter = make(copy.deepcopy(own), shorter=False), make(own, shorter=True)
    wanted, found = run(*plain), run(*shorter)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    expected, mine = gradients(plain[0], wanted), gradients(shorter[0], found)
    assert expected.keys() == mine.keys() and len(mine) == 2 * (14 + 6)
    for name, gradient in expected.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()), msg=name)


@pytest.mark.usefixtures("_either")
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_tokens_that_nobody_reads_end_at_the_last_attention(kind: str, tiny_base: Path) -> None:
    model, mix = make(two_adapters(tiny_base, causal(kind, tiny_base), r=3), shorter=True)
    wanted = run(model, mix)
    words, counts = packed()
    reads = [torch.tensor([1, 5, 6, 11]), torch.tensor([4, counts[1] - 1])]
    rows = torch.cat([reads[0], reads[1] + counts[0]])
    expected = gradients(model, wanted[rows])
    model.zero_grad()
    kept = packing.Kept.of(reads, counts)
    assert len(kept.rows) == 32 and kept.counts == (16, 16)  # a kernel is compiled for every other number of tokens
    entered: list[int] = []
    last = model.get_base_model().model.layers[-1]
    feed_forward = last.halves.feed_forward
    counted = feed_forward.enters.fan
    object.__setattr__(feed_forward, "enters", Counted(counted, entered))
    states = model.get_base_model().model(**{**words, "packing": replace(words["packing"], kept=kept)})
    first, second = states.last_hidden_state[0].split(kept.counts)
    found = torch.cat([first[: len(reads[0])], second[: len(reads[1])]])
    assert kept.done and entered == [32]
    torch.testing.assert_close(found, wanted[rows], rtol=1e-5, atol=1e-5)
    mine = gradients(model, found)
    assert mine.keys() == expected.keys() and len(mine) == 2 * 2 * 14
    for name, gradient in expected.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()), msg=name)


class Counted:
    """A layer's bundle that tells how many tokens it is asked about."""

    def __init__(self, fan: Any, entered: list[int]) -> None:
        self._fan, self._entered = fan, entered

    def fan(self, slices: Any) -> Any:
        self._entered.append(slices[-1][1].stop)
        return self._fan(slices)


@pytest.mark.usefixtures("_either")
def test_values_are_the_same_bits_with_and_without_a_graph(tiny_base: Path) -> None:
    model, mix = make(two_adapters(tiny_base), shorter=True)
    with torch.no_grad():
        wanted = run(model, mix)
    found = run(model, mix)
    assert found.requires_grad and torch.equal(found, wanted)


@pytest.mark.usefixtures("_either")
def test_an_adapter_that_is_not_trained_gets_no_gradient(tiny_base: Path) -> None:
    model, mix = make(two_adapters(tiny_base), shorter=True)
    for _, parameter in adapters.adapter_parameters(model, "b"):
        parameter.requires_grad_(False)
    states = run(model, mix)
    found = gradients(model, states)
    assert len(found) == 28 and all(".a." in name for name in found)


@pytest.mark.usefixtures("_either")
def test_passes_that_are_not_packed_agree_as_well(tiny_base: Path) -> None:
    """Padded on the left, with a mask: attention is the model's own."""
    own = two_adapters(tiny_base)
    plain, shorter = make(copy.deepcopy(own), shorter=False), make(own, shorter=True)
    ids = torch.arange(3, 15).view(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    found = []
    for model, mix in (plain, shorter):
        mix.parts = (("b", None),)
        model.get_base_model().config._attn_implementation = "sdpa"
        found.append(model.get_base_model()(input_ids=ids, attention_mask=mask).logits[:, 2:])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("_either")
def test_fewer_tensors_are_kept_for_the_way_back(tiny_base: Path) -> None:
    own = two_adapters(tiny_base)
    plain, shorter = make(copy.deepcopy(own), shorter=False), make(own, shorter=True)
    kept = []
    for model, mix in (plain, shorter):
        sizes: dict[int, int] = {}
        weights = {p.data_ptr() for p in model.parameters()}

        def keep(tensor: Tensor, sizes: dict[int, int] = sizes, weights: set[int] = weights) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            run(model, mix)
        kept.append(sum(sizes.values()))
    assert kept[1] < 0.75 * kept[0]


def untouched(model: Any) -> bool:
    mix = mixed.Mix()
    mixed.install(model, mix)
    layers = model.get_base_model().model.layers
    return blocks.install(model, mix) == 0 and not any("forward" in vars(layer) for layer in layers)


def test_a_layer_that_computes_more_is_left_alone(tiny_base: Path) -> None:
    model = two_adapters(tiny_base)
    layer = model.get_base_model().model.layers[0]
    forward = type(layer).forward

    def more(layer: Any, *args: Any, **kwargs: Any) -> Tensor:
        return forward(layer, *args, **kwargs) * 1.01

    other = type("OtherDecoderLayer", (type(layer),), {"forward": more})
    for layer in model.get_base_model().model.layers:
        layer.__class__ = other
    assert untouched(model)


@pytest.mark.parametrize("change", ["float16", "trained", "zero3", "activation"])
def test_what_is_not_computed_here_is_left_alone(change: str, tiny_base: Path) -> None:
    model = two_adapters(tiny_base)
    for layer in model.get_base_model().model.layers:
        if change == "float16":
            layer.to(torch.float16)
        elif change == "trained":
            layer.mlp.up_proj.base_layer.weight.requires_grad_(True)
        elif change == "zero3":
            layer.mlp.down_proj.lora_A["a"].weight.ds_id = 1
        else:
            layer.mlp.act_fn = torch.nn.GELU()
    assert untouched(model)


def test_a_model_that_is_converted_later_goes_its_own_way(tiny_base: Path) -> None:
    own = two_adapters(tiny_base)
    plain, shorter = make(copy.deepcopy(own), shorter=False), make(own, shorter=True)
    found = [run(model.to(torch.float16), mix) for model, mix in (plain, shorter)]
    assert torch.equal(*found)
