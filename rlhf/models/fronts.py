"""What makes the input that frozen matrices read: a tensor as it is, a norm, or a gate; and the way back through it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.models.kernels import calls


class Plain(NamedTuple):
    """x itself, (tokens, in)."""

    x: Tensor

    def read(self) -> Tensor:
        """The input."""
        return self.x

    def back(self, gradient: Tensor, beside: Tensor | None) -> tuple[Tensor, ...]:
        """Gradients of what stands here, given the input's."""
        return (gradient,)


class Norm(NamedTuple):
    """The RMS norm of x (tokens, in) with a frozen weight (in,); what follows is added to x."""

    x: Tensor
    weight: Tensor
    eps: float

    def read(self) -> Tensor:
        """The input."""
        return calls.rms_norm(self.x, self.weight, self.eps)[0]

    def back(self, gradient: Tensor, beside: Tensor | None) -> tuple[Tensor, ...]:
        """The gradient of x, with that of the way beside the norm, if there is one."""
        beside = torch.zeros_like(self.x) if beside is None else beside
        _, inverse = calls.rms_norm(self.x, self.weight, self.eps)
        return (calls.rms_norm_backward(gradient, self.x, self.weight, inverse, beside),)


class Gate(NamedTuple):
    """``silu(gate) * up``, all (tokens, in)."""

    gate: Tensor
    up: Tensor

    def read(self) -> Tensor:
        """The input."""
        return calls.gated(self.gate, self.up)

    def back(self, gradient: Tensor, beside: Tensor | None) -> tuple[Tensor, ...]:
        """Gradients of gate and up, given the input's."""
        return calls.gated_backward(gradient, self.gate, self.up)


Front = Plain | Norm | Gate
