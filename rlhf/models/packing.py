"""Sequences of different lengths as one row without padding; only attention sees them apart.

Matrix products, norms and the vocabulary then work on real tokens alone (as in arXiv:2107.02027, without that paper's
limit on the row's length). Attention gets the sequences side by side, filled up on the right: a causal query never
reaches what stands behind it, so no mask is needed. On a CPU, where lengths differ much, it gets them one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlhf.algos.masks import position_ids
from rlhf.models.moving import moved_together

ATTENTION = "rlhf_packed"
MULTIPLE = 16
"""Rows have a multiple of so many tokens: matrix libraries compile a kernel per shape, and like even ones."""
TILE_MULTIPLE = 4
"""The same for our own tiles, which take any number and are as fast for every fourth."""

ONE_BY_ONE = 0.8
"""Share of the filled-up attention below which sequences go one by one: a call costs some of what it saves."""


@dataclass
class Kept:
    """Tokens whose last hidden states are read: only these need all of the last layer.

    Attributes:
        rows: (kept,) index into the packed row, part after part, each filled up to a multiple.
        counts: tokens of each part with its filler.
        done: whether the last layer has left the others out; some layers cannot.
    """

    rows: Tensor
    counts: tuple[int, ...]
    done: bool = False

    @classmethod
    def of(cls, reads: Sequence[Tensor], num_tokens: Sequence[int], multiple: int = MULTIPLE) -> Kept:
        """From what is read of each part, indices into its ``num_tokens``."""
        pieces, start = [], 0
        for read, count in zip(reads, num_tokens, strict=True):
            filler = read.new_full((-len(read) % multiple,), count - 1)
            pieces.append(torch.cat([read, filler]) + start)
            start += count
        return cls(torch.cat(pieces), tuple(map(len, pieces)))


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a packed row stand in (sequences, width).

    Attributes:
        places: (tokens,) index into the flattened (sequences, width).
        lengths: tokens of each sequence of all parts.
        kept: what is read of the result; None: all.
        beside: ``starts`` where the tokens are; None: they are brought there when they are asked for.
    """

    places: Tensor
    lengths: tuple[int, ...]
    kept: Kept | None = None
    beside: Tensor | None = None

    @cached_property
    def starts(self) -> Tensor:
        """(all sequences + 1,) long: where each begins in the row, and the row's tokens."""
        return torch.tensor([0, *self.lengths]).cumsum(0)

    @cached_property
    def starts_there(self) -> Tensor:
        """The same as a GPU's attention takes them: int32, beside the tokens."""
        starts = self.starts if self.beside is None else self.beside
        return starts.to(self.places.device, torch.int32)

    @property
    def num_sequences(self) -> int:
        """Of all parts."""
        return len(self.lengths)

    @property
    def width(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths)

    @property
    def is_ragged(self) -> bool:
        """Whether most of the attention would be over filler."""
        whole = len(self.lengths) * self.width**2
        return sum(length**2 for length in self.lengths) < ONE_BY_ONE * whole

    def split(self, states: Tensor) -> tuple[Tensor, ...]:
        """(1, heads, tokens, size) -> for each sequence (1, heads, its tokens, size), views."""
        return states.split(self.lengths, dim=2)

    def apart(self, states: Tensor) -> Tensor:
        """(1, heads, tokens, size) -> (sequences, heads, width, size), zeros behind each sequence."""
        tokens = states[0].transpose(0, 1)  # (tokens, heads, size)
        slots = self.num_sequences * self.width
        if len(tokens) != slots:
            tokens = tokens.new_zeros(slots, *tokens.shape[1:]).index_put((self.places,), tokens)
        return tokens.unflatten(0, (self.num_sequences, self.width)).transpose(1, 2)

    def together(self, states: Tensor) -> Tensor:
        """(sequences, width, heads, size) -> (1, tokens, heads, size)."""
        flat = states.flatten(0, 1)
        return (flat if len(flat) == len(self.places) else flat.index_select(0, self.places))[None]


def without_last(keep: Tensor) -> Tensor:
    """Real tokens (batch, sequence) but the last of each sequence, on which nothing before it depends.

    What the log-prob of a token or a value reads is the state before it. Of a single token nothing is left out.
    """
    number = keep.cumsum(dim=1)
    total = number[:, -1:]
    return keep & ((number < total) | (total == 1))


def pack(
    input_ids: Tensor, keeps: Sequence[Tensor], multiple: int = MULTIPLE, reads: Sequence[Tensor] | None = None
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """What a backbone needs to run some tokens of (batch, sequence), once for each part, as one row.

    Args:
        keeps: (batch, sequence) bool for each part, its tokens; at least one of each sequence, none missing between
            two others. In main memory, wherever ``input_ids`` are: all indices are made there and brought in one copy,
            as a GPU would have to be waited for at each of them.
        reads: what is read of each part, as ``Kept.of`` takes it, in main memory; None: all.

    Returns:
        (keyword arguments, tokens of each part: its own in order, then filler up to a multiple).
    """
    sources: list[Tensor] = []  # indices into the flattened ids, one behind these for a zero
    positions: list[Tensor] = []
    lengths: list[int] = []
    for keep in keeps:
        taken, own = keep.flatten().nonzero().squeeze(1), keep.sum(dim=1).tolist()
        filler = -len(taken) % multiple  # stands behind the last sequence, where none of its tokens looks
        sources.append(F.pad(taken, (0, filler), value=keep.numel()))
        positions.append(F.pad(position_ids(keep).flatten()[taken], (0, filler)))
        lengths += [*own[:-1], own[-1] + filler]
    counts, sizes = tuple(map(len, sources)), torch.tensor(lengths)
    slots = torch.arange(max(lengths))[None] < sizes[:, None]
    kept = None if reads is None else Kept.of(reads, counts, multiple)
    indices = [
        torch.cat(sources),
        torch.cat(positions),
        slots.flatten().nonzero().squeeze(1),
        F.pad(sizes.cumsum(0), (1, 0)),
    ]
    source, position, places, starts, *rows = moved_together(indices + ([kept.rows] if kept else []), input_ids.device)
    words = {
        "input_ids": F.pad(input_ids.flatten(), (0, 1))[source][None],
        "position_ids": position[None],
        "attention_mask": None,
        "use_cache": False,
        "packing": Packing(places, tuple(lengths), kept and replace(kept, rows=rows[0]), starts),
    }
    return words, counts


def packed_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **words: Any
) -> tuple[Tensor, None]:
    """Scaled dot-product attention within each sequence of a packed row; without a packing, the library's own."""
    packing: Packing | None = words.pop("packing", None)
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **words)
    if words.pop("sliding_window", None) is not None:
        raise ValueError("attention within a window is not packed")
    if packing.is_ragged and query.device.type == "cpu":
        each = zip(*(packing.split(states) for states in (query, key, value)), strict=True)
        parts = [sdpa_attention_forward(module, q, k, v, None, **words)[0] for q, k, v in each]
        return torch.cat(parts, dim=1), None  # parts: (1, tokens, heads, size)
    query, key, value = (packing.apart(states) for states in (query, key, value))
    found, _ = sdpa_attention_forward(module, query, key, value, None, **words)
    return packing.together(found), None


def enable(model: PreTrainedModel) -> bool:
    """Lets a causal model take packed rows; False, and nothing is changed, where it would not compute the same.

    Windows, biases and states that run along the row know nothing of the packing: two short sequences are compared
    with the same two alone.
    """
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, packed_attention)
    config: Any = model.config
    before = config._attn_implementation
    if before == ATTENTION:
        return True
    if before != "sdpa":
        return False
    backbone: Any = getattr(model, model.base_model_prefix)
    device = next(model.parameters()).device
    ids = torch.arange(2, 10, device=device).view(2, 4)
    mask = torch.tensor([[False, True, True, True], [True, True, True, True]], device=device)
    with torch.no_grad():
        alone = [backbone(input_ids=ids[i : i + 1, 1 - i :], use_cache=False).last_hidden_state[0] for i in range(2)]
        config._attn_implementation = ATTENTION
        try:
            words, _ = pack(ids, [mask.cpu()])
            packed = backbone(**words).last_hidden_state[0]
        except (TypeError, ValueError, RuntimeError):  # a model that does not hand the packing on, or cannot take it
            packed = None
    wanted = torch.cat(alone)
    if packed is not None and _near(packed[: len(wanted)], wanted):
        return True
    config._attn_implementation = before
    return False


def _near(found: Tensor, wanted: Tensor) -> bool:
    """Equal but for the order of sums: some hundred units in fp32's last place, a few in a shorter type's."""
    units = 200 if found.dtype == torch.float32 else 8
    away = (found.float() - wanted.float()).norm() / wanted.float().norm()
    return float(away) < units * torch.finfo(found.dtype).eps
