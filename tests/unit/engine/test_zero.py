"""The engine's dictionary, optimizers and schedule; what runs under them is tested on real ranks."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf.config import EngineConfig, OptimConfig
from rlhf.engine.clipping import GroupClipping, ParameterGroup
from rlhf.engine.engine import _build_optimizer, learning_rate_scale
from rlhf.engine.gather import whole_state, write_whole_state
from rlhf.engine.zero import deepspeed_config

SIZES = {"microbatch": 4, "accumulation": 2, "max_grad_norm": 0.5}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dictionary(stage: int, dtype: torch.dtype) -> None:
    found = deepspeed_config(EngineConfig(zero_stage=stage), dtype=dtype, **SIZES)
    assert found["zero_optimization"]["stage"] == stage
    assert found["bf16"]["enabled"] is (dtype == torch.bfloat16)
    assert found["train_micro_batch_size_per_gpu"] == 4 and found["gradient_accumulation_steps"] == 2
    assert found["gradient_clipping"] == 0.5
    assert found["zero_allow_untested_optimizer"] is True  # torch's own AdamW
    assert "offload_optimizer" not in found["zero_optimization"]


def test_offloading() -> None:
    engine = EngineConfig(zero_stage=3, offload_optimizer=True, offload_parameters=True)
    zero = deepspeed_config(engine, dtype=torch.bfloat16, **SIZES)["zero_optimization"]
    assert zero["offload_optimizer"]["device"] == zero["offload_param"]["device"] == "cpu"


def test_every_group_has_its_own_rate() -> None:
    groups = [
        ParameterGroup("policy", [torch.nn.Parameter(torch.zeros(2))], 1e-3, 1.0),
        ParameterGroup("critic", [torch.nn.Parameter(torch.zeros(3))], 1e-2, 1.0),
    ]
    optimizer = _build_optimizer(groups, OptimConfig(eps=1e-5, weight_decay=0.1, betas=(0.8, 0.9)))
    assert [g["lr"] for g in optimizer.param_groups] == [1e-3, 1e-2]
    assert [g["name"] for g in optimizer.param_groups] == ["policy", "critic"]
    for group in optimizer.param_groups:
        assert (group["eps"], group["weight_decay"], tuple(group["betas"])) == (1e-5, 0.1, (0.8, 0.9))


def test_eight_bit_adam_moves_what_it_trains() -> None:
    parameter = torch.nn.Parameter(torch.ones(4096))
    optimizer = _build_optimizer([ParameterGroup("policy", [parameter], 0.1, 1.0)], OptimConfig(optimizer="adamw_8bit"))
    parameter.sum().backward()
    optimizer.step()
    assert torch.allclose(parameter, torch.full_like(parameter, 0.9), atol=1e-3)


def test_eight_bit_adam_moves_what_has_no_gradient() -> None:
    """Why it is refused where a part of a matrix is held by zero gradients; AdamW leaves that part as it is."""
    moved = {}
    for optim in (OptimConfig(), OptimConfig(optimizer="adamw_8bit")):
        parameter = torch.nn.Parameter(torch.ones(4096))
        groups = [ParameterGroup("policy", [parameter], 0.1, 1.0)]
        optimizer = _build_optimizer(groups, optim)
        for _ in range(3):
            parameter.grad = torch.tensor([1.0, 0.0]).repeat(2048)
            optimizer.step()
        moved[optim.optimizer] = float((parameter.detach()[1::2] - 1).abs().max())
    assert moved["adamw"] == 0.0 < moved["adamw_8bit"]


def test_eight_bit_adam_is_clipped_by_group_too() -> None:
    """Its hooks run although it is no optimizer of torch's own: gradients of 64 and 6.4 are cut to 1 and 3.2."""
    policy, critic = torch.nn.Parameter(torch.ones(4096)), torch.nn.Parameter(torch.ones(4096))
    groups = [ParameterGroup("policy", [policy], 0.1, 1.0), ParameterGroup("critic", [critic], 0.1, 3.2)]
    optimizer = _build_optimizer(groups, OptimConfig(optimizer="adamw_8bit"))
    clipping = GroupClipping(optimizer, groups, zero_stage=0)
    (policy.sum() + 0.1 * critic.sum()).backward()
    assert clipping.measure() and clipping.norms == pytest.approx({"policy": 64.0, "critic": 6.4}, rel=1e-4)
    optimizer.step()
    assert float(policy.grad.norm()) == pytest.approx(1.0, rel=1e-4) and float(critic.grad.norm()) == pytest.approx(
        3.2, rel=1e-4
    )


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0.0, [1, 1, 1, 1]),
        ("linear", 0.0, [1, 0.75, 0.5, 0.25]),
        ("cosine", 0.0, [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
        ("constant", 0.5, [1 / 3, 2 / 3, 1, 1]),
        ("linear", 0.5, [1 / 3, 2 / 3, 1, 0.5]),
    ],
)
def test_schedule(schedule: str, warmup: float, expected: list[float]) -> None:
    optim = OptimConfig(schedule=schedule, warmup_fraction=warmup)  # type: ignore[arg-type]
    assert [learning_rate_scale(optim, step, 4) for step in range(4)] == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.9])
def test_every_step_learns_and_none_overshoots(schedule: str, warmup: float) -> None:
    optim = OptimConfig(schedule=schedule, warmup_fraction=warmup)  # type: ignore[arg-type]
    for num_steps in (1, 2, 7, 100):
        scales = [learning_rate_scale(optim, step, num_steps) for step in range(num_steps)]
        assert all(0 < scale <= 1 for scale in scales)
    assert learning_rate_scale(optim, 500, 100) >= 0


def test_whole_state_copies_and_writes_back() -> None:
    layer = torch.nn.Linear(2, 3)
    saved = whole_state(layer.named_parameters(), keep=True)
    assert whole_state(layer.named_parameters(), keep=False) == {}
    before = {name: value.clone() for name, value in saved.items()}
    with torch.no_grad():
        layer.weight.add_(1)
        layer.bias.add_(1)
    assert all(torch.equal(saved[name], before[name]) for name in saved)
    write_whole_state(layer.named_parameters(), saved)
    assert all(torch.equal(value, before[name]) for name, value in layer.named_parameters())
