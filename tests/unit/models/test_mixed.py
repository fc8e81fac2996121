"""Several adapters in one pass over packed sequences, against PEFT's layers, one adapter and one sequence at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from rlhf.config import ModelConfig
from rlhf.models import adapters, mixed, packing
from rlhf.models.loading import load_causal_lm
from rlhf.models.source import resolve_model
from rlhf.models.tokenizer import load_tokenizer

NAMES = ("a", "b")
LENGTHS = (3, 7, 1, 5)


def lora(**changes: Any) -> LoraConfig:
    words = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return LoraConfig(**(words | changes))


def two_adapters(base: Path, causal: Any = None, **second: Any) -> Any:
    """A base with two adapters of random weights; the second may be of another shape."""
    model = adapters.attach(causal or AutoModelForCausalLM.from_pretrained(base), lora(), "a")
    adapters.add(model, lora(**second), "b")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in NAMES:
            for _, parameter in adapters.adapter_parameters(model, name):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
                parameter.requires_grad_(True)
    return model


def ragged() -> tuple[Tensor, Tensor]:
    """(ids, attention mask), padding on both sides."""
    ids = torch.randint(3, 90, (len(LENGTHS), 9), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, length in enumerate(LENGTHS):
        mask[row, row % 2 : row % 2 + length] = True
    return ids, mask


def alone(model: Any, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Hidden states of the real tokens by PEFT, one adapter and one sequence at a time."""
    backbone, found = model.get_base_model().model, {}
    for name in NAMES:
        adapters.select(model, name, [p for n in NAMES for _, p in adapters.adapter_parameters(model, n)])
        rows = [backbone(input_ids=ids[row][mask[row]][None]).last_hidden_state[0] for row in range(len(ids))]
        found[name] = torch.cat(rows)
    return found


def together(model: Any, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    mix = mixed.Mix()
    assert mixed.can_mix(model, NAMES) and packing.enable(model.get_base_model())
    mixed.install(model, mix)
    words, counts = packing.pack(ids, [mask] * len(NAMES))
    mix.parts = tuple(zip(NAMES, counts, strict=True))
    hidden = model.get_base_model().model(**words).last_hidden_state[0]
    real = int(mask.sum())
    return {name: part[:real] for name, part in zip(NAMES, hidden.split(counts), strict=True)}


def gradients(model: Any, hidden: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    sum((hidden[n] * torch.linspace(-1, 1 + i, hidden[n].shape[-1])).sum() for i, n in enumerate(NAMES)).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("second", [{}, {"r": 2, "use_rslora": True}, {"target_modules": ["q_proj", "down_proj"]}],
                         ids=["same", "another rank and scale", "fewer layers"])  # fmt: skip
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_values_and_gradients_are_those_of_separate_passes(
    second: dict[str, Any], quantization: str, tiny_base: Path
) -> None:
    config = ModelConfig.model_validate({"name": str(tiny_base), "quantization": quantization})
    source = resolve_model(str(tiny_base))
    model = two_adapters(tiny_base, load_causal_lm(source, config, load_tokenizer(source, config)), **second).eval()
    ids, mask = ragged()
    wanted = alone(model, ids, mask)
    wanted_gradients = gradients(model, wanted)
    found = together(model, ids, mask)
    for name in NAMES:
        assert torch.allclose(found[name], wanted[name], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(wanted["a"], wanted["b"], atol=1e-2)
    found_gradients = gradients(model, found)
    assert found_gradients.keys() == wanted_gradients.keys()
    for name, value in wanted_gradients.items():
        assert float((found_gradients[name] - value).norm() / value.norm()) < 1e-4, name


def test_a_sequence_is_the_same_whatever_it_is_packed_with(tiny_base: Path) -> None:
    model = two_adapters(tiny_base).eval()
    ids, mask = ragged()
    with torch.no_grad():
        whole = together(model, ids, mask)["b"].split(list(LENGTHS))
        for row in range(len(LENGTHS)):
            one = together(model, ids[row : row + 1], mask[row : row + 1])["b"]
            assert torch.allclose(one, whole[row], rtol=1e-4, atol=1e-5)


def test_parts_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the pass has 5 tokens, its parts .* have 4"):
        mixed.Mix((("a", 1), ("b", 3))).slices(5)
    assert mixed.Mix((("a", 1), ("b", None))).slices(5) == [("a", slice(0, 1)), ("b", slice(1, 5))]


@pytest.mark.parametrize("other", [{"use_dora": True}, {"lora_bias": True}, {"target_modules": ["embed_tokens"]}],
                         ids=["dora", "bias", "embedding"])  # fmt: skip
def test_other_adapters_take_a_pass_each(other: dict[str, Any], tiny_base: Path) -> None:
    assert not mixed.can_mix(two_adapters(tiny_base, **other), NAMES)


def test_a_model_with_a_window_is_not_packed() -> None:
    config = MistralConfig(vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                           num_attention_heads=2, num_key_value_heads=1, sliding_window=4)  # fmt: skip
    model = MistralForCausalLM(config).eval()
    assert not packing.enable(model)
    assert model.config._attn_implementation == "sdpa"


def test_a_model_that_does_not_hand_the_packing_on_is_not_packed(tiny_base: Path, monkeypatch: Any) -> None:
    """Without the packing, attention would look across sequences: the probe must notice."""
    model = AutoModelForCausalLM.from_pretrained(tiny_base).eval()
    layer = type(model.model.layers[0])
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda *a, **k: forward(*a, **{n: v for n, v in k.items() if n != "packing"}))
    assert not packing.enable(model)
    assert model.config._attn_implementation == "sdpa"
