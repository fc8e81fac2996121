"""Four roles in bf16 and on a 4-bit base on a GPU against the same roles in fp32 on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.config import LoraConfig, ModelConfig
from rlhf.models import adapters
from rlhf.models.loading import load_causal_lm, to_device
from rlhf.models.roles import CRITIC, POLICY, REFERENCE, RoleInit, RolesModel
from rlhf.models.source import resolve_model
from rlhf.models.tokenizer import load_tokenizer

ROWS, PROMPT, RESPONSE = 4, 9, 7


def roles_of(base: Path, *, dtype: str, quantization: str = "none", device: str = "cuda") -> RolesModel:
    config = ModelConfig(name=str(base), chat_style="plain", dtype=dtype, quantization=quantization)
    source = resolve_model(str(base))
    model: Any = load_causal_lm(source, config, load_tokenizer(source, config))
    model = to_device(model) if device == "cuda" else model
    shape = adapters.peft_config(LoraConfig(r=4, alpha=8))
    roles = RolesModel(model, RoleInit(shape, critic_config=shape)).to(device)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in roles.named_trained():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return roles.eval()


def batch(device: str) -> dict[str, Any]:
    ids = torch.randint(3, 290, (ROWS, PROMPT + RESPONSE), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids, dtype=torch.bool)
    for row in range(ROWS):
        mask[row, : 2 * row], mask[row, PROMPT + RESPONSE - row :] = False, False
    words = {"input_ids": ids, "attention_mask": mask, "response_ids": ids[:, PROMPT:]}
    return {key: value.to(device) for key, value in words.items()} | {"temperature": 1.0}


def told(roles: RolesModel, device: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Log-probs and values in real slots, and gradients of all trained tensors."""
    words = batch(device)
    given = words["attention_mask"][:, PROMPT:]
    read = roles.read([POLICY, REFERENCE, CRITIC], **words)
    found = {POLICY: read[POLICY][0], REFERENCE: read[REFERENCE][0], CRITIC: read[CRITIC]}
    weights = torch.linspace(0.5, 1.5, given.numel(), device=device).view_as(given)
    sum((found[role] * weights)[given].sum() for role in (POLICY, CRITIC)).backward()
    gradients = {name: p.grad.float().cpu() for name, p in roles.named_trained()}
    return {role: values[given].float().detach().cpu() for role, values in found.items()}, gradients


def shortened(roles: RolesModel) -> list[bool]:
    """By layer, whether its attention half too goes the shorter way."""
    layers: Any = roles.model.get_base_model().model.layers
    return [hasattr(layer, "halves") and layer.halves.attention is not None for layer in layers]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bf16_says_what_fp32_says(checkpointing: bool, tiny_base: Path) -> None:
    wanted, expected = told(roles_of(tiny_base, dtype="float32", device="cpu"), "cpu")
    roles = roles_of(tiny_base, dtype="bfloat16")
    assert roles.mixes and all(shortened(roles)), "packed, both halves of every layer"
    if checkpointing:
        roles.enable_checkpointing(use_reentrant=False)
    found, gradients = told(roles, "cuda")
    for role, values in wanted.items():
        assert float((found[role] - values).abs().mean()) < 0.05, role
    for name, gradient in expected.items():
        along = torch.nn.functional.cosine_similarity(gradients[name].flatten(), gradient.flatten(), dim=0)
        assert float(along) > 0.95, name


def test_a_4_bit_base_says_what_its_dense_matrices_say(tiny_base: Path) -> None:
    roles = roles_of(tiny_base, dtype="bfloat16", quantization="nf4")
    assert roles.mixes and all(shortened(roles))
    found, gradients = told(roles, "cuda")
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    dense = roles_of(tiny_base, dtype="bfloat16")
    places = dict(dense.model.named_modules())
    for name, module in roles.model.named_modules():
        if isinstance(module, Linear4bit):
            with torch.no_grad():
                places[name].weight.copy_(dequantize_4bit(module.weight.data, module.weight.quant_state))
    wanted, expected = told(dense, "cuda")
    for role, values in wanted.items():
        torch.testing.assert_close(found[role], values, rtol=0.02, atol=0.05)
    for name, gradient in expected.items():
        along = torch.nn.functional.cosine_similarity(gradients[name].flatten(), gradient.flatten(), dim=0)
        assert float(along) > 0.97, name
