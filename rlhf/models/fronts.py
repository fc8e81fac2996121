"""What makes the input that frozen matrices read: a tensor as it is, a norm, or a gate; and the way back through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.models.kernels import calls

Back = Callable[[Tensor, Tensor | None], tuple[Tensor, ...]]
"""From the input's gradient, and that of a way beside a norm, to the gradients of what stands in front."""


class Plain(NamedTuple):
    """x itself, (tokens, in)."""

    x: Tensor

    def read(self) -> tuple[Tensor, Back]:
        """The input, and the way back."""
        return self.x, lambda gradient, _: (gradient,)


class Norm(NamedTuple):
    """The RMS norm of x (tokens, in) with a frozen weight (in,); what follows is added to x."""

    x: Tensor
    weight: Tensor
    eps: float

    def read(self) -> tuple[Tensor, Back]:
        """The input, and the way back, to x with what came beside the norm."""
        read, inverse = calls.rms_norm(self.x, self.weight, self.eps)

        def back(gradient: Tensor, beside: Tensor | None) -> tuple[Tensor, ...]:
            beside = torch.zeros_like(self.x) if beside is None else beside
            return (calls.rms_norm_backward(gradient, self.x, self.weight, inverse, beside),)

        return read, back


class Gate(NamedTuple):
    """``silu(gate) * up``, all (tokens, in)."""

    gate: Tensor
    up: Tensor

    def read(self) -> tuple[Tensor, Back]:
        """The input, and the way back, to gate and up."""
        return calls.gated(self.gate, self.up), lambda gradient, _: calls.gated_backward(gradient, self.gate, self.up)


Front = Plain | Norm | Gate
