"""What is told to all layers of a model at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf.config import LoraConfig
from rlhf.models import adapters, halved, packing
from rlhf.models.kernels import calls
from rlhf.models.roles import CRITIC, POLICY, RoleInit, RolesModel

SHAPE: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16,
}  # fmt: skip
MATRICES = 2 * 4 * (32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 32 * 48)
"""Bytes of all layers' matrices."""


def build(*, dtype: torch.dtype = torch.float32) -> tuple[Any, RolesModel]:
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SHAPE)).to(dtype)
    lora = adapters.peft_config(LoraConfig(r=4))
    roles = RolesModel(base, RoleInit(lora, critic_config=lora))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in roles.named_trained():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return base, roles


def trained_once(roles: RolesModel) -> list[torch.Tensor]:
    """What policy and critic say of three sequences, and their gradients."""
    ids = torch.arange(3, 3 + 3 * 17).view(3, 17) % 60
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, :3] = mask[1, 14:] = False
    words = {"input_ids": ids, "attention_mask": mask, "response_ids": ids[:, 7:], "temperature": 1.0}
    found = roles.read([POLICY, CRITIC], **words)
    given = mask[:, 7:]
    told = [found[POLICY][0][given], found[CRITIC][given]]
    (told[0].sum() + told[1].square().sum()).backward()
    return [*told, *(parameter.grad for _, parameter in roles.named_trained())]


def test_kept_panels_change_no_bit_of_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf.models.kernels.fan.prefers_onednn", lambda: True)
    assert calls.library() is not None, "make setup compiles the kernels"
    plain = trained_once(build()[1])
    base, roles = build()
    assert halved.in_tiles(base)
    assert halved.keep_panels(base, 2 * MATRICES - 1) == 0
    assert halved.keep_panels(base, 2 * MATRICES) == 2 * MATRICES
    kept = trained_once(roles)
    assert all(torch.equal(a, b) for a, b in zip(plain, kept, strict=True))
    first, last = (base.model.layers[n].halves for n in (0, 1))
    held = [part.panels._back is not None for h in (first, last) for half in (h.attention, h.feed_forward)
            for part in (half.enters, half.leaves)]  # fmt: skip
    assert held == [False, *[True] * 7], "nothing goes back through the first layer's query, key and value"


def test_other_numbers_have_no_tiles() -> None:
    base, roles = build(dtype=torch.bfloat16)
    assert not halved.in_tiles(base) and halved.keep_panels(base, 1 << 30) == 0
    assert roles._multiple == packing.MULTIPLE


def test_rows_of_tiles_are_filled_up_to_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf.models.kernels.fan.prefers_onednn", lambda: True)
    assert build()[1]._multiple == packing.TILE_MULTIPLE
    monkeypatch.setattr("rlhf.models.kernels.fan.prefers_onednn", lambda: False)
    assert build()[1]._multiple == packing.MULTIPLE
