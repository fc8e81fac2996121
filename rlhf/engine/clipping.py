"""Gradient clipping at a limit per parameter group, exact under every ZeRO stage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed.utils import safe_get_local_grad
from torch import Tensor, nn

from rlhf.engine.flat import group_spans


@dataclass(frozen=True)
class ParameterGroup:
    """Trained tensors of one role, their learning rate, and the norm that their gradient is clipped at."""

    name: str
    parameters: list[nn.Parameter]
    learning_rate: float
    max_grad_norm: float


class GroupClipping:
    """Scales the gradient of every group whose own norm is above its limit, as ``clip_grad_norm_`` per group does.

    DeepSpeed knows one limit for all parameters together, which stays off. It hands reduced gradients, in fp32, to the
    optimizer that it wraps: a hook before ``optimizer.step`` scales them there. ZeRO 1 and 2 take one step per group
    with this rank's piece of it; ZeRO 3 may cut a group into several steps, so its norms are measured before.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, groups: list[ParameterGroup], zero_stage: int) -> None:
        self._groups = {group.name: group for group in groups}
        self._zero_stage = zero_stage
        self._flat: dict[str, Tensor] = {}
        self.norms: dict[str, float] = {}
        """Of every group before clipping; under ZeRO 1 and 2 of the groups whose step has begun."""
        optimizer.register_step_pre_hook(self.clip)

    def lie_flat(self, gradients: Tensor) -> None:
        """Tells that the gradients of all groups lie in one tensor, laid out group after group (``flat``)."""
        spans = group_spans([group.parameters for group in self._groups.values()], gradients)
        self._flat = dict(zip(self._groups, spans, strict=True))

    def measure(self) -> bool:
        """Takes norms that must be known before the step; all ranks call it after the last backward pass.

        Returns:
            False if a gradient is known not to be finite. ZeRO 1 to 3 look for themselves.
        """
        self.norms = {}
        if self._zero_stage == 0:
            for name, group in self._groups.items():
                self.norms[name] = math.sqrt(_squares(self._gradients(name, group.parameters)))
        if self._zero_stage == 3:
            for name, group in self._groups.items():
                self.norms[name] = _norm_over_ranks([safe_get_local_grad(p) for p in group.parameters])
        return self._zero_stage != 0 or all(map(math.isfinite, self.norms.values()))

    def clip(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Scales the gradients of every group whose norm is above its limit."""
        for group in optimizer.param_groups:
            name = group["name"]
            gradients = self._gradients(name, group["params"])
            if not gradients:
                continue
            if self._zero_stage in (1, 2):
                self.norms[name] = _norm_over_ranks(gradients)
            norm, limit = self.norms[name], self._groups[name].max_grad_norm
            if norm > limit:
                torch._foreach_mul_(gradients, limit / (norm + 1e-6))

    def _gradients(self, name: str, parameters: list[nn.Parameter]) -> list[Tensor]:
        """Of a group: one tensor where they lie flat."""
        return [self._flat[name]] if name in self._flat else [p.grad for p in parameters if p.grad is not None]


def _squares(tensors: list[Tensor]) -> Tensor:
    """Sum of squares, in fp32 whatever the tensors' precision."""
    if not tensors:
        return torch.zeros(())
    return torch.stack(torch._foreach_norm(tensors, 2, torch.float32)).square().sum()


def _norm_over_ranks(pieces: list[Tensor]) -> float:
    """Norm of what is cut over all ranks."""
    total = _squares(pieces)
    if torch.cuda.is_available():
        total = total.cuda()  # nccl takes no CPU tensors, which offloaded gradients are
    torch.distributed.all_reduce(total)
    return math.sqrt(total)
