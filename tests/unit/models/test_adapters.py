"""Named adapters: what is trained, what is copied, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlhf.config import LoraConfig
from rlhf.errors import CheckpointError
from rlhf.models import adapters

LORA = LoraConfig(r=4, alpha=8)


def two_adapters(base: Path, lora: LoraConfig = LORA) -> PeftModel:
    torch.manual_seed(0)
    model = adapters.attach(AutoModelForCausalLM.from_pretrained(base), adapters.peft_config(lora), "policy")
    adapters.add(model, adapters.peft_config(lora), "critic")
    return model


def tensors(model: torch.nn.Module, name: str) -> dict[str, Tensor]:
    return {key: p.detach().clone() for key, p in adapters.adapter_parameters(model, name)}


def randomize(model: torch.nn.Module, name: str, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in adapters.adapter_parameters(model, name):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def logits(model: PeftModel, name: str) -> Tensor:
    adapters.select(model, name, [])
    with torch.no_grad():
        return model(torch.arange(10)[None] + 20).logits


def test_names_are_canonical_and_complete(tiny_base: Path) -> None:
    model = two_adapters(tiny_base)
    names = tensors(model, "policy").keys()
    assert names == tensors(model, "critic").keys()
    assert len(names) == 2 * 7 * 2  # two layers, seven linear maps each, A and B
    assert not any("policy" in name or "critic" in name for name in names)


def test_select_keeps_the_other_trained_adapter_trained(tiny_base: Path) -> None:
    model = two_adapters(tiny_base)
    trained = [p for name in ("policy", "critic") for _, p in adapters.adapter_parameters(model, name)]
    for name in ("critic", "policy", "critic"):
        adapters.select(model, name, trained)
        assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trained}
    adapters.select(model, "policy", trained[:1])
    assert adapters.count_parameters(model)[0] == trained[0].numel()


def test_select_really_switches(tiny_base: Path) -> None:
    model = two_adapters(tiny_base)
    before = logits(model, "policy")
    randomize(model, "critic")
    assert torch.equal(logits(model, "policy"), before)
    assert not torch.allclose(logits(model, "critic"), before, atol=1e-2)
    assert torch.equal(logits(model, "policy"), before)


def test_a_fresh_adapter_is_an_exact_no_op(tiny_base: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    ids = torch.arange(10)[None] + 20
    with torch.no_grad():
        assert torch.equal(base(ids).logits, logits(two_adapters(tiny_base), "policy"))


@pytest.mark.parametrize("use_dora", [False, True])
def test_copies_are_complete(use_dora: bool, tiny_base: Path) -> None:
    model = two_adapters(tiny_base, LoraConfig(r=4, alpha=8, use_dora=use_dora))
    randomize(model, "policy")
    adapters.copy_adapter(model, "policy", "critic")
    copied = tensors(model, "critic")
    assert len(copied) == 7 * 2 * (3 if use_dora else 2)  # DoRA adds a magnitude vector
    assert all(torch.equal(value, copied[key]) for key, value in tensors(model, "policy").items())
    assert torch.equal(logits(model, "policy"), logits(model, "critic"))
    randomize(model, "policy", seed=2)
    assert all(torch.equal(value, copied[key]) for key, value in tensors(model, "critic").items())


def test_write_refuses_missing_and_surplus_names(tiny_base: Path) -> None:
    model = two_adapters(tiny_base)
    state = tensors(model, "policy")
    before = tensors(model, "critic")
    first = next(iter(state))
    with pytest.raises(CheckpointError, match=r"missing \['") as caught:
        adapters.write_adapter(model, "critic", {k: v for k, v in state.items() if k != first})
    assert first in str(caught.value)
    with pytest.raises(CheckpointError, match=r"surplus \['odd'\]"):
        adapters.write_adapter(model, "critic", {**state, "odd": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="has 28 tensors, 0 were given"):
        adapters.write_adapter(model, "critic", {})
    with pytest.raises(CheckpointError, match="has 0 tensors"):
        adapters.write_adapter(model, "nobody", {})
    with pytest.raises(CheckpointError, match=r"got \(1,\)"):
        adapters.write_adapter(model, "critic", {**state, first: torch.zeros(1)})
    assert all(torch.equal(value, before[key]) for key, value in tensors(model, "critic").items() if key == first)


@pytest.mark.parametrize("use_dora", [False, True])
def test_files_reload_exactly_here_and_in_peft(use_dora: bool, tiny_base: Path, tmp_path: Path) -> None:
    lora = LoraConfig(r=4, alpha=8, use_dora=use_dora)
    model = two_adapters(tiny_base, lora)
    randomize(model, "policy")
    adapters.save_adapter_file(tmp_path / "a", model.peft_config["policy"], str(tiny_base), tensors(model, "policy"))
    state, rest = adapters.read_adapter_file(tmp_path / "a")
    assert not rest
    fresh = adapters.attach(
        AutoModelForCausalLM.from_pretrained(tiny_base), adapters.read_peft_config(tmp_path / "a"), "policy"
    )
    adapters.write_adapter(fresh, "policy", state)
    assert torch.equal(logits(fresh, "policy"), logits(model, "policy"))
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), tmp_path / "a").eval()
    with torch.no_grad():
        found = theirs(torch.arange(10)[None] + 20).logits
    assert torch.equal(found, logits(model, "policy"))


def test_broken_adapter_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no adapter_model\.safetensors"):
        adapters.read_adapter_file(tmp_path)
    (tmp_path / adapters.ADAPTER_FILE).write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00garbage!")
    with pytest.raises(CheckpointError, match="cannot be read"):
        adapters.read_adapter_file(tmp_path)
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json"):
        adapters.read_peft_config(tmp_path)
