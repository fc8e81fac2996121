"""What is asked of, and told to, all decoder layers of a model that run in halves (``blocks``)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from rlhf.models.blocks import Parts
from rlhf.models.fans import is_plain
from rlhf.models.kernels import fan


def tail_of(model: nn.Module) -> list[nn.Module]:
    """Modules that only those tokens of a packed row meet whose last hidden states are read; none where all do."""
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "halves")]
    for layer in layers:
        if layer.halves.is_last and is_plain(layer.halves.feed_forward.weight):
            return [layer.mlp] if layer.halves.attention is None else [layer.self_attn.o_proj, layer.mlp]
    return []


def recompute(model: nn.Module) -> int:
    """Feed-forwards that go the shorter way keep neither gate nor up for the way back; returns how many these are."""
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "halves")]
    for layer in layers:
        layer.halves = replace(layer.halves, keeps_gates=False)
    return len(layers)


def in_tiles(model: nn.Module) -> bool:
    """Whether all layers' frozen products run in tiles of our own, which take any number of rows."""
    layers = [module for module in model.modules() if type(module).__name__.endswith("DecoderLayer")]
    found: list[Any] = [getattr(layer, "halves", None) for layer in layers]
    if not found or any(halves is None or halves.attention is None for halves in found):
        return False
    parts: list[Parts] = [part for halves in found for part in (halves.attention, halves.feed_forward)]
    return all(fan.serves(part.weight, matrices.frozen) for part in parts for matrices in (part.enters, part.leaves))


def keep_panels(model: nn.Module, most_bytes: int) -> int:
    """Keeps the frozen matrices of all layers in the order of tiles, twice, once for each way, from their next use on.

    Call it when they are what they will stay.

    Returns:
        Bytes that they take; 0, and nothing is kept, where these are more than ``most_bytes`` or not all run in tiles.
    """
    if not in_tiles(model):
        return 0
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "halves")]
    parts = [part for layer in layers for part in (layer.halves.attention, layer.halves.feed_forward)]
    bundles = [matrices for part in parts for matrices in (part.enters, part.leaves)]
    size = 2 * sum(weight.nbytes for matrices in bundles for weight, _ in matrices.frozen)
    if size > most_bytes:
        return 0

    for layer in layers:
        attention, feed_forward = map(_with_panels, (layer.halves.attention, layer.halves.feed_forward))
        layer.halves = replace(layer.halves, attention=attention, feed_forward=feed_forward)
    return size


def _with_panels(part: Parts) -> Parts:
    enters, leaves = (replace(matrices, panels=fan.Panels()) for matrices in (part.enters, part.leaves))
    return replace(part, enters=enters, leaves=leaves)
