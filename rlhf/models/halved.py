"""What is asked of, and told to, all decoder layers of a model that run in halves (``blocks``)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from rlhf.models.blocks import Parts
from rlhf.models.fans import Bundle, is_plain
from rlhf.models.kernels import fan


def _halved(model: nn.Module) -> list[Any]:
    """Layers that run in halves."""
    return [module for module in model.modules() if hasattr(module, "halves")]


def _bundles(model: nn.Module) -> list[Bundle]:
    """The matrices of all halves."""
    halves = [half for layer in _halved(model) for half in (layer.halves.attention, layer.halves.feed_forward)]
    return [matrices for half in halves if half is not None for matrices in (half.enters, half.leaves)]


def tail_of(model: nn.Module) -> list[nn.Module]:
    """Modules that only those tokens of a packed row meet whose last hidden states are read; none where all do."""
    for layer in _halved(model):
        if layer.halves.is_last and is_plain(layer.halves.feed_forward.weight):
            return [layer.mlp] if layer.halves.attention is None else [layer.self_attn.o_proj, layer.mlp]
    return []


def recompute(model: nn.Module) -> int:
    """Feed-forwards that go the shorter way keep neither gate nor up for the way back; returns how many these are."""
    layers = _halved(model)
    for layer in layers:
        layer.halves = replace(layer.halves, keeps_gates=False)
    return len(layers)


def in_tiles(model: nn.Module) -> bool:
    """Whether all layers' frozen products run in tiles of our own, which take any number of rows."""
    layers: list[Any] = [module for module in model.modules() if type(module).__name__.endswith("DecoderLayer")]
    if not layers or not all(hasattr(layer, "halves") and layer.halves.attention is not None for layer in layers):
        return False
    like = _halved(model)[0].halves.feed_forward.weight
    return all(fan.serves(like, matrices.frozen) for matrices in _bundles(model))


def keep_panels(model: nn.Module, most_bytes: int) -> int:
    """Keeps the frozen matrices of all layers in the order of tiles, twice, once for each way, from their next use on.

    Call it when they are what they will stay.

    Returns:
        Bytes that they take; 0, and nothing is kept, where these are more than ``most_bytes`` or not all run in tiles.
    """
    size = 2 * sum(weight.nbytes for matrices in _bundles(model) for weight, _ in matrices.frozen)
    if not in_tiles(model) or size > most_bytes:
        return 0
    for layer in _halved(model):
        attention, feed_forward = map(_with_panels, (layer.halves.attention, layer.halves.feed_forward))
        layer.halves = replace(layer.halves, attention=attention, feed_forward=feed_forward)
    return size


def _with_panels(part: Parts) -> Parts:
    enters, leaves = (replace(matrices, panels=fan.Panels()) for matrices in (part.enters, part.leaves))
    return replace(part, enters=enters, leaves=leaves)
