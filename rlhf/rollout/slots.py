"""A key-value cache with one slot per running sample: samples end and begin in it without moving the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

GROW = 64
"""Columns are added in multiples of this."""
FEWEST = 256
"""Columns that are looked at together at least, where it costs less to look at masked ones than to capture a step."""
ATTENTION = "rlhf_slots"


class SlotCache(Cache):
    """Keys and values of all layers, (slots, heads, columns, head size); row r of a batch lives in slot r.

    Every sample starts at column 0 of its slot. In a *prefill* pass new prompts (padded on the right) attend to
    themselves only and their keys and values are kept aside until ``place``; in a *step* each running slot gets one
    column at its own position.
    """

    def __init__(self, num_slots: int, num_columns: int) -> None:
        super().__init__(layer_class_to_replicate=lambda: _SlotLayer(self))  # type: ignore[arg-type]
        self.num_slots, self.num_columns = num_slots, _rounded(num_columns)
        self.width = 0
        self.columns: Tensor | None = None  # None: a prefill pass
        self.notes: dict[Any, Any] = {}
        """What layers keep for the steps to come: weights do not move while a cache is in use."""

    def begin_prefill(self) -> None:
        """The next pass is over new prompts."""
        self.columns = None

    def begin_step(self, columns: Tensor, width: int) -> None:
        """The next pass writes ``columns[r]`` of slot r, for the first slots; ``width`` columns are looked at."""
        self.columns, self.width = columns, width
        self.rows = torch.arange(len(columns), device=columns.device)
        if width > self.num_columns:
            self.num_columns = _rounded(max(width, self.num_columns * 3 // 2))

    def fit(self, width: int) -> int:
        """Columns to look at in many steps to come: a power of two, as far as there are columns."""
        return min(max(FEWEST, 1 << (width - 1).bit_length()), self.num_columns)

    def step_of(self, layer: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """Keys and values of a layer, (slots, heads, columns, size), and each row's column; None in a prefill."""
        if self.columns is None or layer >= len(self.layers):
            return None
        return *self._own_layers()[layer].whole(), self.columns

    def place(self, source: Tensor, slots: Tensor) -> None:
        """Puts prompt ``source[i]`` of the last prefill into slot ``slots[i]``."""
        for layer in self._own_layers():
            layer.place(source, slots)

    def move(self, source: Tensor, target: Tensor, width: int) -> None:
        """Copies the first ``width`` columns of slots onto others."""
        for layer in self._own_layers():
            layer.move(source, target, width)

    def close(self) -> None:
        """Lets go of all keys and values: cache and layers know each other, and would wait for the collector."""
        self.layers.clear()
        self.notes.clear()

    def _own_layers(self) -> list[_SlotLayer]:
        layers: Any = self.layers  # the library knows them as layers of any cache
        return layers


class _SlotLayer(CacheLayerMixin):
    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self._cache = cache
        self._new: tuple[Tensor, Tensor] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Zeros, because a masked slot still meets the product with its weight of 0."""
        shape = (self._cache.num_slots, key_states.shape[1], self._cache.num_columns)
        self.keys = key_states.new_zeros(*shape, key_states.shape[3])
        self.values = value_states.new_zeros(*shape, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        columns, width = self._cache.columns, self._cache.width
        if columns is None:
            self._new = key_states, value_states
            return key_states, value_states
        self._fit()
        keys, values = self._stored()
        rows = self._cache.rows
        keys[rows, :, columns] = key_states[:, :, 0]
        values[rows, :, columns] = value_states[:, :, 0]
        return keys[: len(columns), :, :width], values[: len(columns), :, :width]

    def whole(self) -> tuple[Tensor, Tensor]:
        self._fit()
        return self._stored()

    def place(self, source: Tensor, slots: Tensor) -> None:
        if self._new is None:
            return
        self._fit()
        for stored, new in zip(self._stored(), self._new, strict=True):
            stored[slots, :, : new.shape[2]] = new[source]
        self._new = None

    def move(self, source: Tensor, target: Tensor, width: int) -> None:
        for stored in self._stored():
            stored[target, :, :width] = stored[source, :, :width]

    def _stored(self) -> tuple[Tensor, Tensor]:
        keys: Any = self.keys
        values: Any = self.values
        return keys, values

    def _fit(self) -> None:
        """Adds columns when a sequence has outgrown them."""
        more = self._cache.num_columns - self._stored()[0].shape[2]
        if more > 0:
            keys, values = self._stored()
            self.keys, self.values = F.pad(keys, (0, 0, 0, more)), F.pad(values, (0, 0, 0, more))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


def fits_slots(model: PreTrainedModel) -> bool:
    """Whether every layer is plain causal attention, through the library's attention interface."""
    config: Any = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ("full_attention",))
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return (
        kinds == {"full_attention"}
        and not window
        and bool(getattr(model, "_can_compile_fullgraph", False))
        and model.config._attn_implementation == "sdpa"
    )


@contextmanager
def slot_attention(model: PreTrainedModel) -> Iterator[None]:
    """Uses the attention of this module inside the block."""
    config: Any = model.config
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Scaled dot-product attention; in a step, query heads that share a key head become its queries.

    That leaves keys and values where they are: repeating them for every query head would copy the cache each step.
    """
    if query.shape[2] != 1 or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    num_rows, num_heads, _, size = query.shape
    grouped = query.view(num_rows, key.shape[1], num_heads // key.shape[1], size)
    found = F.scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=kwargs.get("scaling"))
    return found.reshape(num_rows, 1, num_heads, value.shape[3]), None


def _rounded(columns: int) -> int:
    return -(-columns // GROW) * GROW


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
