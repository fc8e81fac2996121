"""A step of decoding through a decoder layer as one call: its weights are described once, as the kernels see them."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_float, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from rlhf.models.kernels.calls import function_of


class Thin(Structure):
    """A frozen linear layer with one adapter, or none (rank 0); as in thin.h."""

    _fields_ = (
        *[(name, c_void_p) for name in ("weight", "bias", "down", "up")],
        *[(name, c_int64) for name in ("inputs", "outputs", "rank")],
        ("scaling", c_float),
    )


class Layer(Structure):
    """A decoder layer; as in decode.cpp."""

    _fields_ = (
        *[(name, c_void_p) for name in ("first_norm", "second_norm")],
        *[(name, c_float) for name in ("first_eps", "second_eps", "scale")],
        *[(name, c_int64) for name in ("hidden", "heads", "groups", "size")],
        *[(name, Thin) for name in ("query", "key", "value", "out", "gate", "up", "down")],
    )


class Slots(Structure):
    """What stands in the slots of a cache; as in decode.cpp."""

    _fields_ = (*[(name, c_void_p) for name in ("keys", "values", "column")], ("columns", c_int64))


def describe(attention: Any, feed_forward: Any, adapter: str, head_size: int, scale: float) -> Layer:
    """A layer under one adapter; valid as long as the tensors of its parts stay where they are.

    Args:
        attention: the layer's first half: ``weight``, ``eps``, the bundles ``enters`` and ``leaves``.
        feed_forward: the second.
        adapter: a name that no matrix has: the base alone.
    """
    query, key, value = _thin(attention.enters, adapter)
    gate, up = _thin(feed_forward.enters, adapter)
    (out,), (down,) = _thin(attention.leaves, adapter), _thin(feed_forward.leaves, adapter)
    norms = attention.weight.data_ptr(), feed_forward.weight.data_ptr()
    heads, groups = query.outputs // head_size, key.outputs // head_size
    sizes = len(attention.weight), heads, groups, head_size
    return Layer(*norms, attention.eps, feed_forward.eps, scale, *sizes, query, key, value, out, gate, up, down)


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


def _thin(bundle: Any, adapter: str) -> list[Thin]:
    found = [
        Thin(weight.data_ptr(), None if bias is None else bias.data_ptr(), None, None, *weight.shape[::-1], 0, 1.0)
        for weight, bias in bundle.frozen
    ]
    members, matrices = bundle.adapters.get(adapter, ((), ()))
    for (index, scaling, _), down, up in zip(members, matrices[::2], matrices[1::2], strict=True):
        layer = found[index]
        layer.down, layer.up, layer.rank, layer.scaling = down.data_ptr(), up.data_ptr(), len(down), scaling
    return found
