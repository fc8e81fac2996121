"""LoRA that starts from the principal part of the base's weights, on a base that stays as it is.

PiSSA (arXiv:2404.02948) and OLoRA (arXiv:2406.01775) move a part ``s B0 A0`` of a weight W into the adapter and train
it there; what is left of W is another base, which no other role could share. But ``(W - s B0 A0) + s B A`` is
``W + s (B A - B0 A0)``: LoRA of twice the rank on W itself, whose second half, ``A0`` and ``-B0``, is held. It starts
without any effect but rounding, is trained as the paper's adapter is, and whoever loads it reads plain LoRA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from rlhf.config.methods import METHODS, why_not
from rlhf.errors import ConfigError
from rlhf.models.mixed import LINEARS

EXACT = 512
"""Up to this smaller side all singular values are computed, beyond it the wanted ones by iteration (PiSSA sec. 4)."""
ITERATIONS = 16

Factors = tuple[Tensor, Tensor]


def _singular(weight: Tensor, rank: int, scaling: float) -> Factors:
    """PiSSA: the largest singular values, their roots on either side."""
    if min(weight.shape) <= EXACT:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        left, values, right = left[:, :rank], values[:rank], right[:rank]
    else:
        with torch.random.fork_rng(devices=[weight.device] if weight.is_cuda else []):
            torch.manual_seed(0)  # every rank draws the same
            left, values, turned = torch.svd_lowrank(weight, q=rank, niter=ITERATIONS)
        right = turned.t()
    roots = (values / scaling).sqrt()
    return roots[:, None] * right, left * roots


def _orthogonal(weight: Tensor, rank: int, scaling: float) -> Factors:
    """OLoRA: the first columns of Q and rows of R, as they are."""
    q, _ = torch.linalg.qr(weight[:, :rank])  # these columns depend on no others
    return q.t() @ weight, q


_FACTORS: dict[str, Callable[[Tensor, int, float], Factors]] = {"pissa": _singular, "olora": _orthogonal}


@torch.no_grad()
def start(model: nn.Module, name: str, method: str) -> None:
    """Writes the start of a fresh adapter, whose second half is to be held; nothing where a method starts otherwise.

    Args:
        model: carries the adapter as LoRA of twice the rank.

    Raises:
        ConfigError: a layer's weight has no such part: it is smaller than the rank, no linear layer, or in pieces.
    """
    if not METHODS[method].holds_half:
        return
    for where, layer in _layers(model, name):
        base: Any = layer.get_base_layer()
        if any(hasattr(parameter, "ds_id") for parameter in base.parameters()):
            raise ConfigError(why_not(method, zero_stage=3))
        rank = layer.r[name] // 2
        if type(layer).__name__ not in LINEARS or rank > min(layer.in_features, layer.out_features):
            raise ConfigError(
                f"lora.method={method}: {where} is no linear layer with {rank} rows and columns or more; "
                "set a smaller lora.r, or lora.target_modules without this layer"
            )
        weight = dequantize_module_weight(base).to(_device(base), torch.float32)
        weight = weight.t() if layer.fan_in_fan_out else weight
        down, up = _FACTORS[method](weight, rank, layer.scaling[name])
        layer.lora_A[name].weight.copy_(torch.cat([down, down]))
        layer.lora_B[name].weight.copy_(torch.cat([up, -up], dim=1))


def hold(model: nn.Module, name: str, method: str) -> None:
    """No gradient reaches the second half of a trained adapter that ``start`` has written, or that is a copy of one."""
    if not METHODS[method].holds_half:
        return
    for _, layer in _layers(model, name):
        layer.lora_A[name].weight.register_hook(_without_second_half(0))
        layer.lora_B[name].weight.register_hook(_without_second_half(1))


def _device(base: Any) -> torch.device:
    """Where a weight is decomposed: on a GPU if there is one, wherever the base is."""
    return torch.device("cuda") if torch.cuda.is_available() else base.weight.device


def _layers(model: nn.Module, name: str) -> Iterator[tuple[str, Any]]:
    for where, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and name in layer.r:
            yield where, layer


def _without_second_half(axis: int) -> Callable[[Tensor], Tensor]:
    def mask(gradient: Tensor) -> Tensor:
        first, second = gradient.chunk(2, dim=axis)
        return torch.cat([first, torch.zeros_like(second)], dim=axis)

    return mask
