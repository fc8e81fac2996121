"""A step of decoding through a decoder layer as one call: its weights are described once, as the kernels see them."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_float, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from rlhf.models.kernels import adapting, calls
from rlhf.models.kernels.adapting import WIDTH
from rlhf.models.kernels.calls import function_of

MOST_PACKED_BYTES = 1 << 26
"""Of a model whose matrices are copied for decoding; larger ones are read where they lie, in twice the time."""


class Thin(Structure):
    """A frozen linear layer with one adapter, or none (rank 0); as in thin.h."""

    _fields_ = (
        *[(name, c_void_p) for name in ("weight", "bias", "down", "up")],
        *[(name, c_int64) for name in ("inputs", "outputs", "rank")],
        ("scaling", c_float),
        ("panels", c_void_p),
    )


class Layer(Structure):
    """A decoder layer; as in decode.cpp."""

    panels: list[Tensor]
    """What is in order for it, which lives as long."""
    _fields_ = (
        *[(name, c_void_p) for name in ("first_norm", "second_norm")],
        *[(name, c_float) for name in ("first_eps", "second_eps", "scale")],
        *[(name, c_int64) for name in ("hidden", "heads", "groups", "size")],
        *[(name, Thin) for name in ("query", "key", "value", "out", "gate", "up", "down")],
    )


class Slots(Structure):
    """What stands in the slots of a cache; as in decode.cpp."""

    _fields_ = (*[(name, c_void_p) for name in ("keys", "values", "column")], ("columns", c_int64))


def describe(
    attention: Any, feed_forward: Any, adapter: str, head_size: int, scale: float, *, num_layers: int
) -> Layer:
    """A layer under one adapter; valid as long as the tensors of its parts stay where they are.

    Args:
        attention: the layer's first half: ``weight``, ``eps``, the bundles ``enters`` and ``leaves``.
        feed_forward: the second.
        adapter: a name that no matrix has: the base alone.
        num_layers: of the model. Of a small one the matrices are put in order for all steps to come.
    """
    query, key, value = _thin(attention.enters, adapter)
    gate, up = _thin(feed_forward.enters, adapter)
    (out,), (down,) = _thin(attention.leaves, adapter), _thin(feed_forward.leaves, adapter)
    norms = attention.weight.data_ptr(), feed_forward.weight.data_ptr()
    heads, groups = query.outputs // head_size, key.outputs // head_size
    sizes = len(attention.weight), heads, groups, head_size
    thins = [query, key, value, out, gate, up, down]
    panels = _packed(thins, num_layers) if attention.weight.dtype == torch.float32 else []
    layer = Layer(*norms, attention.eps, feed_forward.eps, scale, *sizes, *thins)
    layer.panels = panels
    return layer


def decode(layer: Layer, x: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, column: Tensor) -> Tensor:
    """One token per slot: writes its key and value to the cache and returns the layer's hidden states.

    Args:
        x: (rows, hidden), as the result; of the type of everything else.
        cos: (rows, head size), as ``sin``.
        keys: (slots, groups, columns, head size), as ``values``, both contiguous; row r has slot r.
        column: (rows,) long, where each row's token belongs; it sees its slot's columns up to this one.
    """
    result = torch.empty_like(x)
    slots = Slots(keys.data_ptr(), values.data_ptr(), column.data_ptr(), keys.shape[2])
    pointers = (x.data_ptr(), cos.data_ptr(), sin.data_ptr(), result.data_ptr())
    function = function_of("decode", x.dtype)
    function(ctypes.addressof(layer), ctypes.addressof(slots), *pointers, len(x), torch.get_num_threads())
    return result


def _packed(thins: list[Thin], num_layers: int) -> list[Tensor]:
    """The layers' matrices in the order in which tiles of rows read them, unless the model is large."""
    sizes = [
        thin.inputs * thin.outputs + thin.inputs * -(-thin.rank // WIDTH) * WIDTH + thin.rank * thin.outputs
        for thin in thins
    ]
    fits = not any(size % WIDTH for thin in thins for size in (thin.inputs, thin.outputs))
    if not fits or 4 * sum(sizes) * num_layers > MOST_PACKED_BYTES or not adapting.has_registers():
        return []
    panels = [torch.empty(size) for size in sizes]
    for thin, place in zip(thins, panels, strict=True):
        calls.library().pack_thin(ctypes.byref(thin), place.data_ptr())
        thin.panels = place.data_ptr()
    return panels


def _thin(bundle: Any, adapter: str) -> list[Thin]:
    found = [
        Thin(
            weight.data_ptr(), None if bias is None else bias.data_ptr(), None, None, *weight.shape[::-1], 0, 1.0, None
        )
        for weight, bias in bundle.frozen
    ]
    members, matrices = bundle.adapters.get(adapter, ((), ()))
    for (index, scaling, _), down, up in zip(members, matrices[::2], matrices[1::2], strict=True):
        layer = found[index]
        layer.down, layer.up, layer.rank, layer.scaling = down.data_ptr(), up.data_ptr(), len(down), scaling
    return found
