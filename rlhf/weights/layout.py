"""Where tensors lie in one flat buffer: asked for with every version, and the same in all of them."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

KEPT_LAYOUTS = 64
"""Of a whole policy, every part has one."""


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies in the flat buffer (offset and length in bytes)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    num_bytes: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch has it."""
        return getattr(torch, self.dtype)


class Layout(tuple[TensorEntry, ...]):
    """The entries of a buffer, back to back. It travels as its text, and a process reads the same text only once."""

    @cached_property
    def text(self) -> bytes:
        """What a hash over the layout is taken of."""
        return text_of(self)

    def holds(self, state: Mapping[str, Tensor]) -> bool:
        """Whether tensors are those of this layout: names, shapes and types."""
        if len(state) != len(self):
            return False
        found = (state.get(entry.name) for entry in self)
        return all(
            tensor is not None and tuple(tensor.shape) == entry.shape and str(tensor.dtype)[6:] == entry.dtype
            for entry, tensor in zip(self, found, strict=True)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return read_layout, (self.text,)


def text_of(entries: Iterable[TensorEntry]) -> bytes:
    """Entries in a form that ``read_layout`` reads."""
    return repr([astuple(entry) for entry in entries]).encode()


@lru_cache(KEPT_LAYOUTS)
def read_layout(text: bytes) -> Layout:
    """The layout whose ``text`` this is."""
    return Layout(TensorEntry(*fields) for fields in ast.literal_eval(text.decode()))


def layout_of(state: Mapping[str, Tensor]) -> Layout:
    """Tensors back to back, wide types first so that each lies aligned."""
    names = sorted(state, key=lambda name: (-state[name].element_size(), str(state[name].dtype), name))
    entries, offset = [], 0
    for name in names:
        tensor = state[name]
        size = tensor.numel() * tensor.element_size()
        entries.append(TensorEntry(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), offset, size))
        offset += size
    return Layout(entries)
