"""Trained tensors of a rank side by side in one, and AdamW (arXiv:1711.05101) over that one.

An adapter has hundreds of small matrices. Norms of their gradients, their clipping and torch's fused step take up each
of them by itself, and look all of them over before: 3 ms per update for 226 matrices, of which 1 is arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.errors import CheckpointError

MOMENTS = ("exp_avg", "exp_avg_sq")
"""As torch names them."""
LINE_BYTES = 64
"""Every tensor begins at a cache line: vectors that lie across two cost two accesses."""


class Layout:
    """Where tensors of one type lie in a flat one; what is between them is zero.

    Attributes:
        size: elements of the flat one.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        step = LINE_BYTES // parameters[0].dtype.itemsize
        self._shapes = [parameter.shape for parameter in parameters]
        self._starts, self.size = [], 0
        for parameter in parameters:
            self._starts.append(self.size)
            self.size += -(-parameter.numel() // step) * step

    def views(self, flat: Tensor) -> list[Tensor]:
        """Each tensor's place in a flat one."""
        return [
            flat[start : start + shape.numel()].view(shape)
            for start, shape in zip(self._starts, self._shapes, strict=True)
        ]


def group_spans(groups: Sequence[Sequence[nn.Parameter]], flat: Tensor) -> list[Tensor]:
    """Each group's part of a tensor in which all groups' parameters are laid out, one behind the other."""
    return list(flat.split([Layout(parameters).size for parameters in groups]))


class FlatStep:
    """An AdamW's step over one tensor per group, where gradients lie flat; its state stays what torch's would be.

    Weights and moments of the optimizer become views of flat ones, and are saved and loaded as before.

    Args:
        optimizer: a fused AdamW.
        gradients: flat, in which the gradients of all groups' parameters lie when a step is taken, group after group.
        before: called before each step with the optimizer, as its own hooks would be.
        after: likewise after each step.
    """

    def __init__(
        self, optimizer: Any, gradients: Tensor, before: Callable[[Any], None], after: Callable[[Any], None]
    ) -> None:
        self._optimizer, self._before, self._after = optimizer, before, after
        groups = [group["params"] for group in optimizer.param_groups]
        spans = group_spans(groups, gradients)
        self._groups = [_Group(optimizer, own, span) for own, span in zip(groups, spans, strict=True)]

    @torch.no_grad()
    def __call__(self, closure: None = None) -> None:
        """One step."""
        self._before(self._optimizer)
        for group, settings in zip(self._groups, self._optimizer.param_groups, strict=True):
            group.step(settings)
        self._after(self._optimizer)


def install(optimizer: Any, gradients: Tensor, *, before: Callable[[Any], None], after: Callable[[Any], None]) -> None:
    """Gives an optimizer such a step instead of its own; arguments as of ``FlatStep``."""
    optimizer.step = FlatStep(optimizer, gradients, before, after)


class _Group:
    """Weights and moments of one group, flat."""

    def __init__(self, optimizer: Any, parameters: list[nn.Parameter], gradients: Tensor) -> None:
        self._optimizer, self._parameters, self._gradients = optimizer, parameters, gradients
        layout = Layout(parameters)
        self._weights, self._mean, self._square = (parameters[0].new_zeros(layout.size) for _ in range(3))
        self._steps = torch.zeros(len(parameters))  # torch counts for each by itself
        self._views = list(zip(layout.views(self._mean), layout.views(self._square), strict=True))
        for parameter, view in zip(parameters, layout.views(self._weights), strict=True):
            view.copy_(parameter.detach())
            parameter.data = view

    def step(self, settings: dict[str, Any]) -> None:
        """With a group's settings of the optimizer."""
        if self._optimizer.state[self._parameters[0]].get("exp_avg") is not self._views[0][0]:
            self._take_over()
        self._steps += 1
        betas = settings["betas"]
        torch._fused_adamw_(
            [self._weights], [self._gradients], [self._mean], [self._square], [], [self._steps[0]],
            lr=settings["lr"], beta1=betas[0], beta2=betas[1], weight_decay=settings["weight_decay"],
            eps=settings["eps"], amsgrad=False, maximize=False,
        )  # fmt: skip

    def _take_over(self) -> None:
        """Moments that are not there yet are zero; those of a checkpoint are copied.

        Raises:
            CheckpointError: the parameters have not taken equally many steps.
        """
        state = self._optimizer.state  # a dictionary of its own after every load
        steps = {float(state[parameter].get("step", 0.0)) for parameter in self._parameters}
        if len(steps) > 1:
            raise CheckpointError(f"parameters of one group have taken different numbers of steps: {sorted(steps)}")
        self._steps.fill_(steps.pop())
        for parameter, step, views in zip(self._parameters, self._steps, self._views, strict=True):
            known = state[parameter]
            for name, view in zip(MOMENTS, views, strict=True):
                view.copy_(known[name]) if name in known else view.zero_()
            state[parameter] = {"step": step, **dict(zip(MOMENTS, views, strict=True))}
