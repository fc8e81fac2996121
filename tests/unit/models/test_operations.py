"""Counted operations, against what torch's own counter sees in a real update."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf.config import LoraConfig
from rlhf.models import adapters, packing, products
from rlhf.models.operations import UpdateCosts, product_peak, update_costs
from rlhf.models.roles import CRITIC, POLICY, RoleInit, RolesModel


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("critic", [True, False])
def test_an_update_costs_what_the_counter_sees(critic: bool, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # the counter knows torch's own products alone, and neither fused attention nor sums in place
    monkeypatch.setattr(products, "prefers_onednn", lambda: False)
    monkeypatch.setattr(packing, "enable", lambda model: False)
    shape = LlamaConfig(vocab_size=400, hidden_size=128, intermediate_size=352, num_hidden_layers=8,
                        num_attention_heads=4, num_key_value_heads=2, attn_implementation="eager")  # fmt: skip
    lora = adapters.peft_config(LoraConfig(r=8))
    base, own = LlamaForCausalLM(shape), LlamaForCausalLM(shape) if whole else None
    roles = RolesModel(base, RoleInit(lora, policy_copy=own, critic_config=lora if critic else None))
    trained = {
        role: sum(p.numel() for n, p in roles.named_trained() if n.startswith(role)) for role in (POLICY, CRITIC)
    }
    counts = {role: count for role, count in trained.items() if count}
    costs = update_costs(roles.model.get_base_model(), counts, whole_policy=whole)
    ids = torch.randint(2, 400, (4, 48))
    mask = torch.ones_like(ids, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter:
        logprobs, _, values = roles("train", input_ids=ids, attention_mask=mask, response_ids=ids[:, 16:],
                                    temperature=1.0, want_values=critic)  # fmt: skip
        (logprobs.sum() + (values.sum() if values is not None else 0)).backward()
    predicted = costs.update([48 + 1] * 4, 4 * 32)  # a padded pass takes the last token, too
    # eager attention multiplies what the mask hides, too; nothing goes back through the first layer's q, k and v
    hidden_by_mask = (2 if critic else 1) * 6 * costs.attention * 4 * 48**2
    assert predicted + hidden_by_mask == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_costs_grow_with_tokens_and_roles() -> None:
    one = UpdateCosts(body=1000, adapters=(10,), head=100, attention=0)
    assert one.update([6, 8], 3) == 4 * 1000 * 12 + 6 * 10 * 12 + 4 * 100 * 3
    assert one.role(0, [5, 7], 2, trained=False, to_end=True) == one.role(0, [6, 8], 2, trained=False)
    two = UpdateCosts(body=1000, adapters=(10, 11), head=100, attention=2)
    assert two.update([6], 0) == 2 * (4 * 1000 * 5 + 6 * 2 * 25) + 6 * 21 * 5


def test_unread_tokens_end_at_the_last_attention() -> None:
    costs = UpdateCosts(body=1000, adapters=(10, 20), head=100, attention=0, tail=300, adapter_tails=(3, 6))
    forward = costs.role(1, [6, 8], 2, trained=False)
    assert forward == 2 * (1000 * 12 - 300 * 10 + 20 * 12 - 6 * 10)
    assert costs.update([6, 8], 4) == sum(
        4 * (1000 * 12 - 300 * 8) + 6 * (own * 12 - tail * 8) for own, tail in ((10, 3), (20, 6))
    ) + 4 * 100 * 4  # fmt: skip


def test_the_tail_is_what_lies_behind_the_last_attention() -> None:
    base = LlamaForCausalLM(LlamaConfig(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                                        num_attention_heads=2, num_key_value_heads=1))  # fmt: skip
    roles = RolesModel(base, RoleInit(adapters.peft_config(LoraConfig(r=8)), critic_config=None))
    count = sum(p.numel() for _, p in roles.named_trained())
    costs = update_costs(roles.model.get_base_model(), {POLICY: count})
    assert costs.tail == 32 * 32 + 3 * 32 * 48
    assert costs.adapter_tails == (8 * (2 * 32 + 3 * (32 + 48)),)
    assert costs.adapters[0] == 3 * (costs.adapter_tails[0] + 8 * ((32 + 32) + 2 * (32 + 16)))


def test_a_peak_is_a_speed() -> None:
    assert 1e8 < product_peak(torch.device("cpu"), torch.float32) < 1e14
