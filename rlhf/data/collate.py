"""Ragged token ids into rectangular tensors: prompts end and responses begin at one column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlhf.errors import ConfigError, DataError

TokenIds = Sequence[int]


@dataclass(frozen=True)
class SequenceBatch:
    """Sequences = prompts padded on the left + responses padded on the right.

    Args:
        input_ids: (batch, prompt + response) int64.
        attention_mask: (batch, prompt + response) bool, True on real tokens.
        response_mask: (batch, prompt + response) bool, True on response tokens, stop token included.
        prompt_length: columns that hold prompts; ``input_ids[:, prompt_length:]`` are the responses.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    response_mask: torch.Tensor
    prompt_length: int


def pad_left(rows: Sequence[TokenIds], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad on the left, as generation wants prompts.

    Returns:
        ids, int64, and mask, bool, True on real tokens; both (batch, longest row).

    Raises:
        DataError: there is no row.
    """
    return _pad(rows, pad_id, left=True)


def pad_right(rows: Sequence[TokenIds], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad on the right, as responses and training sequences want it; results as in ``pad_left``."""
    return _pad(rows, pad_id, left=False)


def _pad(rows: Sequence[TokenIds], pad_id: int, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    if not rows:
        raise DataError("there is no row to pad; give at least one")
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)  # (batch, width)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)  # (batch, width)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, place] = torch.as_tensor(row, dtype=torch.long)
        mask[index, place] = True
    return ids, mask


def assemble_sequences(prompt_ids: Sequence[TokenIds], response_ids: Sequence[TokenIds], pad_id: int) -> SequenceBatch:
    """Join prompts and responses.

    Raises:
        DataError: their numbers differ, there is none, or a prompt is empty (nothing would predict its
            first token).
    """
    if len(prompt_ids) != len(response_ids):
        raise DataError(f"{len(prompt_ids)} prompts and {len(response_ids)} responses do not pair up")
    empty = [index for index, row in enumerate(prompt_ids) if len(row) == 0]
    if empty:
        raise DataError(f"prompts {empty[:10]} have no token; a prompt needs at least BOS")
    prompts, prompt_mask = pad_left(prompt_ids, pad_id)  # (batch, prompt)
    responses, response_mask = pad_right(response_ids, pad_id)  # (batch, response)
    return SequenceBatch(
        input_ids=torch.cat([prompts, responses], dim=1),
        attention_mask=torch.cat([prompt_mask, response_mask], dim=1),
        response_mask=torch.cat([torch.zeros_like(prompt_mask), response_mask], dim=1),
        prompt_length=prompts.shape[1],
    )


def bucket_by_tokens(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group rows of similar length so that no padded group holds more than ``max_tokens`` tokens.

    Args:
        lengths: tokens per row.
        max_tokens: limit for rows in a group times its longest row.

    Returns:
        groups of row indices, shortest rows first; the same lengths always give the same groups.

    Raises:
        ConfigError: ``max_tokens`` is not positive.
        DataError: one row alone is longer than ``max_tokens``.
    """
    if max_tokens < 1:
        raise ConfigError(f"max_tokens={max_tokens} holds no token; use a positive number")
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        length = lengths[index]
        if length > max_tokens:
            raise DataError(
                f"row {index} has {length} tokens, more than max_tokens={max_tokens}; raise it or cut the row"
            )
        # Rows come in order of length, so this row is the longest of its group.
        if groups and (len(groups[-1]) + 1) * length <= max_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
