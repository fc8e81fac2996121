"""RMS norms (arXiv:1910.07467) with frozen weights as one autograd step each, in a third of the passes over memory.

Models write the norm as five operations on whole tensors, whose gradients are nine more. Between the matrix products
of a small model on a CPU that is a tenth of an update.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def install(model: nn.Module) -> None:
    """Gives every RMS norm of a model the shorter way; norms that compute anything else stay as they are."""
    for module in model.modules():
        if _is_rms_norm(module):
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign]


def _is_rms_norm(module: Any) -> bool:
    """By name and form, then by what it answers: some multiply by 1 + weight, some normalise in groups."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", None)
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(eps, float) or not isinstance(weight, Tensor):
        return False
    if weight.dim() != 1 or weight.dtype != torch.float32 or weight.device.type != "cpu" or hasattr(weight, "ds_id"):
        return False
    x = torch.arange(2.0 * len(weight)).view(2, -1).sin()  # nothing random: models are initialised around here
    with torch.no_grad():
        return bool(torch.allclose(module(x), _RmsNorm.apply(x, weight, eps), rtol=1e-5, atol=1e-6))


def _forward(module: Any, x: Tensor) -> Tensor:
    """Equal to the last bit whether anything is trained or not: a ratio of new to old log-probs begins at 1."""
    weight, eps = module.weight, module.variance_epsilon
    plain = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    if not plain or hasattr(weight, "ds_id"):
        return type(module).forward(module, x)
    if not torch.is_grad_enabled():
        return (x * inverse_rms(x, eps)).mul_(weight)
    return x * inverse_rms(x, eps) * weight if weight.requires_grad else _RmsNorm.apply(x, weight, eps)


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps), (..., 1)."""
    return (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1] + eps).rsqrt()


def to_input(gradient: Tensor, x: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    """The norm's gradient to x; ``inverse`` is its factor, (..., 1)."""
    scaled = gradient * weight
    along = torch.linalg.vecdot(scaled, x).unsqueeze(-1)  # (..., 1)
    pull = along.mul_(inverse).mul_(inverse).div_(-x.shape[-1])
    return torch.addcmul(scaled, x, pull).mul_(inverse)


class _RmsNorm(torch.autograd.Function):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension; the weight gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        inverse = inverse_rms(x, eps)
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return to_input(gradient, *ctx.saved_tensors), None, None
