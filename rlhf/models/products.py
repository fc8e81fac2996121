"""Matrix products with fp32 weights on a CPU, by the faster of the two libraries inside torch.

torch hands fp32 products to MKL, which keeps AVX-512 for Intel's own processors. oneDNN, also part of torch, uses it
wherever it is: on an AMD EPYC with AVX-512 one core did 207 instead of 95 GFLOP/s. The choice depends on the machine
alone, so that runs repeat bit for bit.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_ROWS = 8
FEW_PRODUCTS = 3 << 19
"""Below either (rows; multiplications) MKL is the faster one: oneDNN takes 13 microseconds to begin, MKL 3."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b`` without a graph. Shapes: x (rows, in), weight (out, in) of any strides, result (rows, out)."""
    if _to_onednn(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def linear_onto(x: Tensor, weight: Tensor, bias: Tensor | None, onto: Tensor) -> Tensor:
    """``onto + x W^T + b`` without a graph; onto (rows, out) stays as it is."""
    if _to_onednn(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, onto, weight, bias, "add")
    return torch.addmm(onto, x, weight.t()) if bias is None and x.is_cuda else F.linear(x, weight, bias).add_(onto)


def through(gradient: Tensor, up: Tensor) -> Tensor:
    """``gradient @ up`` for an adapter's up matrix (out, r): libraries read long rows faster than long columns."""
    return linear(gradient, up.t().contiguous())


def through_onto(gradient: Tensor, up: Tensor, scaling: float, target: Tensor) -> None:
    """Writes ``scaling * gradient @ up`` to a target (rows, r), which may be columns of a wider one."""
    if gradient.is_cuda:
        torch.addmm(target, gradient, up, beta=0, alpha=scaling, out=target)  # one launch
    else:
        torch.mul(through(gradient, up), scaling, out=target)


def outer(gradient: Tensor, low: Tensor, scaling: float) -> Tensor:
    """``scaling * gradient^T low``, the gradient of an up matrix, (out, r).

    On a CPU as its transpose, a third of the time; on a GPU as one launch.
    """
    if gradient.is_cuda:
        nothing = gradient.new_empty(gradient.shape[1], low.shape[1])
        return torch.addmm(nothing, gradient.t(), low, beta=0, alpha=scaling)
    turned = low.t() @ gradient  # (r, out)
    return torch.mul(turned.t(), scaling, out=gradient.new_empty(turned.shape[::-1]))


def _to_onednn(x: Tensor, weight: Tensor) -> bool:
    large = len(x) >= FEW_ROWS and len(x) * weight.numel() >= FEW_PRODUCTS
    return large and x.dtype == torch.float32 and x.device.type == "cpu" and prefers_onednn()


@cache
def prefers_onednn() -> bool:
    """Whether MKL would leave this processor's AVX-512 alone and torch has the operation to ask oneDNN instead."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    try:
        known = "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
        x = torch.arange(40.0).view(FEW_ROWS, 5)  # nothing random: models are initialised around here
        weight, bias = x[:3] - 7.5, x[0, :3]
        found = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        found = torch.ops.mkldnn._linear_pointwise(x, found, weight, bias, "add") / 2
    except (OSError, AttributeError, RuntimeError):
        return False
    return not known and torch.allclose(found, F.linear(x, weight, bias), rtol=1e-5, atol=1e-5)


def install(model: nn.Module) -> None:
    """Lets the linear layers of a model take the faster product; nothing changes on other devices."""
    if prefers_onednn():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.forward = MethodType(_forward, module)  # type: ignore[method-assign]


def _forward(module: nn.Linear, x: Tensor) -> Tensor:
    weight = module.weight
    if weight.dtype != x.dtype or x.dtype != torch.float32 or hasattr(weight, "ds_id"):
        return F.linear(x, weight, module.bias)
    rows = x.flatten(0, -2)
    found = _Product.apply(rows, weight, module.bias) if torch.is_grad_enabled() else linear(rows, weight, module.bias)
    return found.view(*x.shape[:-1], -1)


class _Product(torch.autograd.Function):
    """``x W^T + b`` and its gradients, of frozen weights the input's alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            linear(gradient, weight.t()) if wants_x else None,
            linear(gradient.t(), x.t()) if wants_weight else None,
            gradient.sum(dim=0) if wants_bias else None,
        )
