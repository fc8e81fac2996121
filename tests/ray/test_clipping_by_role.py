"""Every role's gradient is clipped at its own norm, and it begins when it begins, whatever holds the pieces of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.config import EngineConfig, PlacementConfig
from tests.support.ppo import run, tiny_config
from tests.support.runtime import ActorPool
from tests.support.two_roles import SIZES, SKIPPED, TwoRoles, by_torch

CASES: list[tuple[int, int, torch.dtype, dict[str, Any]]] = [
    *((stage, ranks, torch.float32, {}) for ranks in (1, 2) for stage in (0, 1, 2, 3)),
    *((stage, 2, torch.bfloat16, {}) for stage in (0, 1, 2, 3)),
    (2, 2, torch.float32, {"offload_optimizer": True}),
    (3, 2, torch.float32, {"offload_optimizer": True}),
    (3, 2, torch.float32, {"cut": 40}),
]


def apart(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """Largest difference of a weight."""
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def test_one_common_norm_would_be_told_apart() -> None:
    own, norms = by_torch()
    common, _ = by_torch(common_norm=True)
    start = {name: p.detach() for name, p in TwoRoles().named_parameters()}
    assert apart(own, start) > 0.1 and apart(own, common) > 0.05
    assert max(norms[0].values()) > 100 * min(norms[0].values())


def call(
    method: str, stage: int, ranks: int, dtype: torch.dtype, more: dict[str, Any], pool: ActorPool, directory: Path
) -> list[Any]:
    """What every rank answers, for the arguments of a case."""
    settings = dict(more)
    cut = settings.pop("cut", None)
    engine = EngineConfig.model_validate({"zero_stage": stage, **settings})
    placement = PlacementConfig(num_ranks=ranks, start_timeout_seconds=400)
    group = pool.launch(
        "tests.support.two_roles:TwoRolesWorker",
        "policy",
        size=ranks,
        args=(),
        placement=placement,
        run_dir=str(directory),
        collective=True,
    )
    return group.call(method, engine, dtype, str(directory / "state"), cut)


@pytest.mark.parametrize(("stage", "ranks", "dtype", "more"), CASES)
def test_same_weights_as_torch_s_clipping_by_role(
    stage: int, ranks: int, dtype: torch.dtype, more: dict[str, Any], actor_pool: ActorPool, tmp_path: Path
) -> None:
    """Six steps, one of them not finite on one rank, the last ones from a checkpoint."""
    found = call("train", stage, ranks, dtype, more, actor_pool, tmp_path)
    expected, norms = by_torch()
    exact = dtype == torch.float32
    for weights, told in found:
        assert apart(weights, expected) < (2e-5 if exact else 5e-3)
        assert told == found[0][1], "the ranks tell other norms"
        for step in range(len(SIZES)):
            assert told[step] == pytest.approx(norms[step], rel=1e-4 if exact else 0.05)
        assert set(told[SKIPPED].values()) == {float("inf")}


@pytest.mark.parametrize(("stage", "ranks", "dtype", "more"), CASES)
def test_a_role_that_has_stood_by_takes_its_first_step_as_one_that_has_not(
    stage: int, ranks: int, dtype: torch.dtype, more: dict[str, Any], actor_pool: ActorPool, tmp_path: Path
) -> None:
    """Bit for bit: weights did not decay, moments are zero, and Adam has counted no step."""
    start = {name: p.detach().to(dtype) for name, p in TwoRoles().named_parameters()}
    for plain, late in call("begin_late", stage, ranks, dtype, more, actor_pool, tmp_path):
        for name, value in plain.items():
            assert not torch.equal(value, start[name]), name
            assert torch.equal(late[name], value) == name.startswith("policy"), name


def test_ppo_hands_each_role_its_limit(actor_pool: ActorPool, tiny_base: Path, tmp_path: Path) -> None:
    """A limit that stops the critic leaves the policy as it was, and the norms are told by role."""
    plain, still = (
        run(tiny_config(tiny_base, tmp_path / name / "run", num_steps=1, critic_max_grad_norm=limit), actor_pool)
        for name, limit in (("plain", None), ("still", 1e-12))
    )
    row, other = plain.rows[0], still.rows[0]
    assert 0 < row["grad_norm.policy"] < row["grad_norm"] and 0 < row["grad_norm.critic"] < row["grad_norm"]
    assert other["value_loss"] > row["value_loss"], "the critic stays"
    assert all(torch.equal(plain.adapter[name], value) for name, value in still.adapter.items())
