"""One forward pass for the tokens of several adapters: the frozen base multiplies all, each adapter its own.

PEFT's layers apply one adapter to a whole batch, so policy, reference, critic and reward model would be four passes
over the same base. Here a pass names which tokens belong to which adapter; the base's matrix product is done once for
all. Where base and adapters are plain matrices, the product, its low-rank update (arXiv:2106.09685) and their gradients
are one autograd step that adds into the result in place, without PEFT's full-size temporaries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from rlhf.models.products import linear, outer, through

Parts = tuple[tuple[str, int | None], ...]
"""(adapter, number of tokens) in the order of the tokens; None: all that are left."""


LINEARS = {"Linear", "Linear4bit", "Linear8bitLt"}
"""PEFT's LoRA layers over a linear one, whole or quantized by bitsandbytes."""


@dataclass
class Mix:
    """Which tokens of the running pass belong to which adapter; all layers of a model look at one."""

    parts: Parts = ()

    def slices(self, num_tokens: int) -> list[tuple[str, slice]]:
        """Every adapter's tokens.

        Raises:
            ValueError: the parts do not add up to the tokens of the input.
        """
        return _slices(self.parts, num_tokens)

    def slices_of(self, counts: Sequence[int]) -> list[tuple[str, slice]]:
        """The same where only some tokens of each part are left."""
        return _slices([(name, count) for (name, _), count in zip(self.parts, counts, strict=True)], sum(counts))


def _slices(parts: Sequence[tuple[str, int | None]], num_tokens: int) -> list[tuple[str, slice]]:
    found, start = [], 0
    for name, count in parts:
        stop = num_tokens if count is None else start + count
        found.append((name, slice(start, stop)))
        start = stop
    if start != num_tokens:
        raise ValueError(f"the pass has {num_tokens} tokens, its parts {parts} have {start}")
    return found


def can_mix(model: nn.Module, names: Sequence[str]) -> bool:
    """Whether every adapter layer of a model is plain LoRA on a linear layer that sees all tokens in order.

    DoRA and other methods change the base's own product; experts of a mixture see tokens in another order.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    return bool(layers) and all(
        isinstance(layer, LoraLayer)
        and type(layer).__name__ in LINEARS
        and not getattr(layer, "fan_in_fan_out", False)
        and not layer.merged
        and not layer.lora_variant
        and not any(layer.lora_bias.get(name) for name in names)
        and "experts" not in where
        for where, layer in model.named_modules()
        if isinstance(layer, BaseTunerLayer)
    )


def install(model: nn.Module, mix: Mix) -> None:
    """Makes every adapter layer of a model follow ``mix``; dropout of adapters does not act any more."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.mix = mix  # type: ignore[assignment]
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign]


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    flat = x.flatten(0, -2)  # (tokens, in)
    named = [(name, where) for name, where in layer.mix.slices(len(flat)) if name in layer.lora_A]
    base = layer.base_layer
    matrices = [part[name] for name, _ in named for part in (layer.lora_A, layer.lora_B)]
    if _is_plain(base, x) and all(_is_plain(matrix, x) for matrix in matrices):
        places = [(where, layer.scaling[name]) for name, where in named]
        way = _MixedLinear.apply if torch.is_grad_enabled() else _products
        result = way(flat, base.weight, base.bias, places, *(matrix.weight for matrix in matrices))
        return result.view(*x.shape[:-1], -1)
    result = base(x, *args, **kwargs)
    if not named:
        return result
    rows = result.flatten(0, -2)
    parts = [_beside(layer, name, rows[where], flat[where]) for name, where in named]
    return _joined(rows, named, parts).view(*x.shape[:-1], -1)


def _is_plain(linear: Any, x: Tensor) -> bool:
    """A matrix of the input's type that lies here whole: neither quantized nor cut into pieces by ZeRO-3."""
    return type(linear) is nn.Linear and linear.weight.dtype == x.dtype and not hasattr(linear.weight, "ds_id")


def _beside(layer: Any, name: str, result: Tensor, x: Tensor) -> Tensor:
    """A base's result with one adapter's update, by the modules themselves (so that ZeRO-3 fetches their pieces)."""
    down, up = layer.lora_A[name], layer.lora_B[name]
    update = up(down(x.to(down.weight.dtype))) * layer.scaling[name]
    return (result + update).to(result.dtype)


def _joined(result: Tensor, named: Sequence[tuple[str, slice]], parts: Sequence[Tensor]) -> Tensor:
    """All tokens in order; those without an adapter as the base gave them."""
    pieces, start = [], 0
    for (_, where), part in zip(named, parts, strict=True):
        pieces += [result[start : where.start], part]
        start = where.stop
    kept = [piece for piece in (*pieces, result[start:]) if len(piece)]
    return kept[0] if len(kept) == 1 else torch.cat(kept)


def _products(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    places: Sequence[tuple[slice, float]],
    *matrices: Tensor,
    inner: list[Tensor] | None = None,
) -> Tensor:
    """(tokens, out); ``inner`` gets each adapter's (tokens, r) in between."""
    result = linear(x, weight, bias)
    for (where, scaling), down, up in zip(places, matrices[::2], matrices[1::2], strict=True):
        low = linear(x[where], down)
        result[where].addmm_(low, up.t(), alpha=scaling)
        if inner is not None:
            inner.append(low)
    return result


class _MixedLinear(torch.autograd.Function):
    """``x W^T + b``, and ``scaling * x A^T B^T`` added to the tokens of each adapter; the base is frozen."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        places: list[tuple[slice, float]],
        *matrices: Tensor,
    ) -> Tensor:
        """Shapes: x (tokens, in); weight (out, in); matrices A (r, in) and B (out, r) of each place in turn."""
        inner: list[Tensor] = []
        result = _products(x, weight, bias, places, *matrices, inner=inner)
        ctx.places = places
        learns = any(ctx.needs_input_grad[4:])
        ctx.save_for_backward(x if learns else None, weight, *matrices, *(inner if learns else ()))
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, *rest = ctx.saved_tensors
        count = len(ctx.places)
        matrices, inner = rest[: 2 * count], rest[2 * count :]
        wants_x = ctx.needs_input_grad[0]
        back = linear(gradient, weight.t()) if wants_x else None
        found: list[Tensor | None] = []
        for index, (where, scaling) in enumerate(ctx.places):
            down, up = matrices[2 * index : 2 * index + 2]
            wants_down, wants_up = ctx.needs_input_grad[4 + 2 * index : 6 + 2 * index]
            out = gradient[where]  # (tokens, out)
            low = through(out, up).mul_(scaling) if wants_down or wants_x else None  # (tokens, r)
            found.append(low.t() @ x[where] if wants_down else None)  # type: ignore[union-attr]
            found.append(outer(out, inner[index], scaling) if wants_up else None)
            if back is not None and low is not None:
                back[where].addmm_(low, down)
        return back, None, None, None, *found
