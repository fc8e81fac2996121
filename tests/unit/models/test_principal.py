"""Adapters that start from the weights' principal parts: trained as PEFT trains them on the base that it rewrites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from rlhf.config import LoraConfig, ModelConfig, SftConfig, build_config
from rlhf.errors import ConfigError
from rlhf.models import adapters, principal
from rlhf.models.loading import load_causal_lm
from rlhf.models.roles import CRITIC, POLICY, REFERENCE, RoleInit, RolesModel
from rlhf.models.source import resolve_model
from rlhf.models.tokenizer import load_tokenizer

METHODS = ["pissa", "olora"]
IDS = torch.randint(3, 290, (2, 14), generator=torch.Generator().manual_seed(0))


def lora(method: str, r: int = 4) -> LoraConfig:
    return LoraConfig(method=method, r=r, alpha=8)


def base(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def losses(model: Any, num_steps: int = 6) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, weight_decay=0.0)
    found = []
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
        loss.backward()
        optimizer.step()
        found.append(float(loss))
    return found


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_as_on_the_base_that_is_rewritten(method: str, tiny_base: Path) -> None:
    settings: dict[str, Any] = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", "init_lora_weights": method}
    rewritten = peft.LoraConfig(r=4, lora_alpha=8, **settings)
    theirs = peft.get_peft_model(base(tiny_base), rewritten)
    ours = adapters.fresh(base(tiny_base), lora(method), "default")
    plain = adapters.fresh(base(tiny_base), lora("lora"), "default")
    found = losses(ours)
    assert found == pytest.approx(losses(theirs), rel=1e-4)
    assert abs(found[-1] - losses(plain)[-1]) > 1e-2 * found[-1], "plain LoRA would not pass"


@pytest.mark.parametrize(
    ("method", "quantization"),
    [*[(method, "none") for method in METHODS], ("pissa", "nf4"), *[(method, "int8") for method in METHODS]],
)
def test_the_second_half_stays_and_the_base_too(method: str, quantization: Any, tiny_base: Path) -> None:
    settings = ModelConfig(name=str(tiny_base), dtype="float32", quantization=quantization)
    source = resolve_model(str(tiny_base))
    own = load_causal_lm(source, settings, load_tokenizer(source, settings))
    before = {name: p.detach().clone() for name, p in own.named_parameters()}
    shape = adapters.peft_config(lora(method))
    roles = RolesModel(own, RoleInit(shape, critic_config=shape, method=method))
    start = {role: copies(roles, role) for role in (POLICY, CRITIC, REFERENCE)}
    assert all(torch.equal(start[POLICY][key], start[REFERENCE][key]) for key in start[POLICY])
    optimizer = torch.optim.AdamW([p for _, p in roles.named_trained()], lr=1e-2, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        mask = torch.ones_like(IDS, dtype=torch.bool)
        logprobs, _, values = roles(
            "train", input_ids=IDS, attention_mask=mask, response_ids=IDS[:, 8:], temperature=1.0, want_values=True
        )
        (logprobs.sum() + (values - 1).square().sum()).backward()
        optimizer.step()
    for role in (POLICY, CRITIC):
        for key, now in copies(roles, role).items():
            axis = 0 if "lora_A" in key else 1
            (mine, held), (first, second) = now.chunk(2, axis), start[role][key].chunk(2, axis)
            assert torch.equal(held, second) and not torch.equal(mine, first), key
    after = {key.replace(".base_layer", ""): p for key, p in roles.model.get_base_model().named_parameters()}
    changed = [name for name, value in before.items() if not torch.equal(raw(after[name]), raw(value))]
    assert changed == []


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """Bytes: 4-bit weights lie in floats that may be no numbers."""
    return tensor.detach().contiguous().view(torch.uint8)


def copies(roles: RolesModel, role: str) -> dict[str, torch.Tensor]:
    return {key: p.detach().clone() for key, p in adapters.adapter_parameters(roles.model, role)}


def test_large_matrices_are_decomposed_by_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight = torch.randn(48, 40) @ torch.diag(2.0 ** -torch.arange(40.0))
    down, up = principal._singular(weight, 5, 0.5)
    monkeypatch.setattr(principal, "EXACT", 32)
    state = torch.random.get_rng_state()
    quick_down, quick_up = principal._singular(weight, 5, 0.5)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(quick_up @ quick_down, up @ down, rtol=1e-4, atol=1e-4)
    left, values, right = torch.linalg.svd(weight)
    torch.testing.assert_close(0.5 * up @ down, left[:, :5] * values[:5] @ right[:5], rtol=1e-4, atol=1e-5)


def test_what_has_no_such_part_is_refused(tiny_base: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora.method=pissa: .* set a smaller lora.r"):
        adapters.fresh(base(tiny_base), lora("pissa", r=512), "default")
    given = {"run_dir": "x", "model": {"name": str(tiny_base)}, "data": {"train": "a.jsonl"}}
    decaying = {**given, "lora": {"method": "pissa"}, "optim": {"weight_decay": 0.1}}
    with pytest.raises(ConfigError, match=r"optim.weight_decay=0.1 would shrink the half of a lora.method=pissa"):
        build_config(SftConfig, decaying, source="a file")
    in_8_bits = {**given, "lora": {"method": "olora"}, "optim": {"optimizer": "adamw_8bit"}}
    with pytest.raises(ConfigError, match=r"adamw_8bit would move the half of a lora.method=olora .* set it to adamw"):
        build_config(SftConfig, in_8_bits, source="a file")
    with pytest.raises(
        ConfigError, match=r"lora.dropout=0.1 would drop from the part of the base that lora.method=olora"
    ):
        build_config(LoraConfig, {"method": "olora", "dropout": 0.1}, source="a file")
    with pytest.raises(ConfigError, match=r"lora.method=olora does not work under ZeRO-3"):
        build_config(SftConfig, {**given, "lora": {"method": "olora"}, "engine": {"zero_stage": 3}}, source="a file")


@pytest.mark.parametrize("method", METHODS)
def test_matrices_that_stand_turned(method: str) -> None:
    """GPT-2 keeps its weights as (in, out)."""
    shape = GPT2Config(n_embd=32, n_head=2, n_layer=1, vocab_size=50, n_positions=16)
    torch.manual_seed(0)
    own = GPT2LMHeadModel(shape).eval()
    ids = torch.arange(8)[None]
    wanted = own(ids).logits.detach()
    model = adapters.fresh(own, lora(method), "default")
    torch.testing.assert_close(model(ids).logits, wanted, rtol=1e-4, atol=1e-4)
    layer: Any = model.get_base_model().transformer.h[0].attn.c_attn
    down, up = layer.lora_A["default"].weight[:4], layer.lora_B["default"].weight[:, :4]
    weight = layer.get_base_layer().weight.t()
    factors = principal._FACTORS[method](weight, 4, layer.scaling["default"])
    torch.testing.assert_close(up @ down, factors[1] @ factors[0])


def test_a_critic_starts_as_a_policy_of_its_shape(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    first = principal.start
    monkeypatch.setattr(
        principal, "start", lambda model, name, method: started.append(name) or first(model, name, method)
    )
    same, other = (adapters.peft_config(lora("pissa", r=r)) for r in (4, 2))
    RolesModel(base(tiny_base), RoleInit(same, critic_config=adapters.peft_config(lora("pissa")), method="pissa"))
    assert started == [REFERENCE]
    RolesModel(base(tiny_base), RoleInit(same, critic_config=other, method="pissa"))
    assert started == [REFERENCE, REFERENCE, CRITIC]


def test_other_methods_start_as_they_do(tiny_base: Path) -> None:
    model = adapters.fresh(base(tiny_base), lora("lora"), "default")
    assert all(not p.any() for key, p in model.named_parameters() if "lora_B" in key)
    assert all(p._backward_hooks is None for p in nn.ParameterList(model.parameters()))
