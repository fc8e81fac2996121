"""The shorter bf16 step against DeepSpeed's own, bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16 import unfused_optimizer
from deepspeed.runtime.fp16.loss_scaler import LossScaleConfig, LossScaleProfile
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from torch import nn

from rlhf.engine.master_weights import shorten_step


@pytest.fixture(autouse=True)
def _first_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfused_optimizer.dist, "get_rank", lambda: 0)  # asked for a line of the log


def wrapped(model: nn.Module, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> Any:
    config = LossScaleConfig(dtype, False, scale, {}, profile=LossScaleProfile.UNFUSED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1, fused=True)
    return FP16_UnfusedOptimizer(optimizer, loss_scale_config=config, low_precision_dtype=dtype)


def test_the_shorter_step_is_the_same_step() -> None:
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)).bfloat16()
    other = copy.deepcopy(one)
    own, short = wrapped(one), wrapped(other)
    assert shorten_step(short)
    for step in range(4):
        for model, optimizer in ((one, own), (other, short)):
            generator = torch.Generator().manual_seed(step)
            for number, parameter in enumerate(model.parameters()):
                gradient = torch.randn(parameter.shape, generator=generator).bfloat16()
                parameter.grad = None if (step, number) == (2, 1) else gradient  # one that no loss reached
            assert not optimizer.step() and not optimizer.overflow
            optimizer.zero_grad()
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    for left, right in zip(own.fp32_groups[0], short.fp32_groups[0], strict=True):
        assert torch.equal(left, right) and right.grad is None
    mine, theirs = short.optimizer.state_dict(), own.optimizer.state_dict()
    assert mine["param_groups"] == theirs["param_groups"]
    assert all(torch.equal(mine["state"][i][k], v) for i, found in theirs["state"].items() for k, v in found.items())
    assert short.loss_scale_config.cur_iter == own.loss_scale_config.cur_iter


def test_other_optimizers_and_a_loss_scale_keep_their_own_step() -> None:
    model = nn.Linear(3, 3)
    plain = torch.optim.AdamW(model.parameters())
    assert not shorten_step(plain)
    scaled = wrapped(model.half(), torch.float16, 8.0)
    assert not shorten_step(scaled) and "step" not in vars(scaled)
