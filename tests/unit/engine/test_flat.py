"""A step over flat tensors is AdamW's own, and its state is what AdamW would save and load."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlhf.config.model import OptimConfig
from rlhf.engine.clipping import GroupClipping, ParameterGroup
from rlhf.engine.engine import _build_optimizer
from rlhf.engine.flat import LINE_BYTES, Layout, install
from rlhf.engine.unbegun import UnbegunGroups
from rlhf.errors import CheckpointError

SHAPES = {"policy": [(16, 40), (24, 16), (5,)], "critic": [(3, 7), (1, 40), ()]}
OPTIM = OptimConfig(weight_decay=0.1)


def build(*, flat: bool) -> tuple[list[ParameterGroup], Any, GroupClipping, Tensor]:
    """Two groups, their optimizer with clipping, and flat gradients; ``flat``: these are what the step reads."""
    torch.manual_seed(0)
    groups = [
        ParameterGroup(name, [nn.Parameter(torch.randn(shape)) for shape in shapes], rate, limit)
        for (name, shapes), rate, limit in zip(SHAPES.items(), (1e-2, 3e-2), (1.0, 1e9), strict=True)
    ]
    optimizer: Any = _build_optimizer(groups, OPTIM)
    clipping, unbegun = GroupClipping(optimizer, groups, zero_stage=0), UnbegunGroups(optimizer)
    optimizer.unbegun = unbegun
    gradients = torch.zeros(Layout([p for group in groups for p in group.parameters]).size)
    if flat:
        clipping.lie_flat(gradients)
        install(optimizer, gradients, before=clipping.clip, after=unbegun.forget)
    return groups, optimizer, clipping, gradients


def update(built: Any, number: int, still: str | None = None) -> dict[str, float]:
    """One step with drawn gradients, those of the group ``still`` zero; returns their norms."""
    groups, optimizer, clipping, gradients = built
    generator, parameters = torch.Generator().manual_seed(number), [p for g in groups for p in g.parameters]
    for parameter, view in zip(parameters, Layout(parameters).views(gradients), strict=True):
        view.copy_(torch.randn(parameter.shape, generator=generator))
        parameter.grad = view
    for group in groups:
        for parameter in group.parameters if group.name == still else ():
            parameter.grad.zero_()
    assert clipping.measure()
    optimizer.step()
    return dict(clipping.norms)


def weights(built: Any) -> list[Tensor]:
    return [p.detach() for group in built[0] for p in group.parameters]


def assert_alike(one: Any, other: Any) -> None:
    for mine, theirs in zip(weights(one), weights(other), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_tensors_begin_at_cache_lines_and_cover_each_other_nowhere() -> None:
    parameters = [nn.Parameter(torch.zeros(shape)) for shapes in SHAPES.values() for shape in shapes]
    layout = Layout(parameters)
    flat = torch.zeros(layout.size)
    for number, view in enumerate(layout.views(flat), start=1):
        assert view.shape == parameters[number - 1].shape
        assert view.storage_offset() * 4 % LINE_BYTES == 0
        view.fill_(number)
    assert [int((flat == n).sum()) for n in range(1, 7)] == [640, 384, 5, 21, 40, 1]
    assert layout.size == 640 + 384 + 16 + 32 + 48 + 16
    assert Layout([nn.Parameter(torch.zeros(3).bfloat16())]).size == 32


def test_steps_are_those_of_torch() -> None:
    flat, plain = build(flat=True), build(flat=False)
    assert_alike(flat, plain)
    for number in range(5):
        norms, others = update(flat, number), update(plain, number)
        assert norms == pytest.approx(others, rel=1e-6) and norms["policy"] > 1.0, "the policy's are clipped"
        assert_alike(flat, plain)
    moved = [not torch.equal(a, b) for a, b in zip(weights(flat), weights(build(flat=True)), strict=True)]
    assert all(moved)


def test_a_rate_of_zero_moves_no_weight() -> None:
    built = build(flat=True)
    before = copy.deepcopy(weights(built))
    built[1].param_groups[0]["lr"] = 0.0
    update(built, 0)
    same = [torch.equal(a, b) for a, b in zip(weights(built), before, strict=True)]
    assert same == [True] * 3 + [False] * 3


@pytest.mark.parametrize("flat", [True, False])
def test_steps_of_a_group_that_has_not_begun_do_not_count(flat: bool) -> None:
    late, plain = build(flat=flat), build(flat=flat)
    optimizer = late[1]
    optimizer.unbegun.names = frozenset({"policy"})
    for number in range(5):
        optimizer.param_groups[0]["lr"] = 0.0
        update(late, number, still="policy")
    assert [float(own["step"]) for own in optimizer.state.values()] == [0.0] * 3 + [5.0] * 3
    optimizer.unbegun.names = frozenset()
    optimizer.param_groups[0]["lr"] = 1e-2
    for number in (5, 6):
        update(late, number)
        update(plain, number)
    same = [torch.equal(a, b) for a, b in zip(weights(late), weights(plain), strict=True)]
    assert same == [True] * 3 + [False] * 3


@pytest.mark.parametrize("saves_flat", [True, False])
@pytest.mark.parametrize("loads_flat", [True, False])
def test_state_is_saved_and_loaded_as_torch_s_own(saves_flat: bool, loads_flat: bool) -> None:
    first, second = build(flat=saves_flat), build(flat=loads_flat)
    for number in range(3):
        update(first, number)
    update(second, 9)  # what it has is replaced
    state = copy.deepcopy(first[1].state_dict())
    for mine, theirs in zip(weights(second), weights(first), strict=True):
        mine.copy_(theirs)
    second[1].load_state_dict(state)
    for number in range(3, 5):
        update(first, number)
        update(second, number)
    assert_alike(first, second)
    assert [float(own["step"]) for own in second[1].state.values()] == [5.0] * 6


def test_parameters_that_are_not_equally_far_are_refused() -> None:
    built = build(flat=True)
    update(built, 0)
    state = copy.deepcopy(built[1].state_dict())
    state["state"][1]["step"] = torch.tensor(7.0)
    built[1].load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"different numbers of steps: \[1.0, 7.0\]"):
        update(built, 1)
