"""Packing short rows into long ones, best fit first, without cutting any."""

from __future__ import annotations

import bisect
from typing import Any

from rlhf.errors import DataError

TokenRow = dict[str, Any]


def pack_rows(rows: list[TokenRow], max_tokens: int) -> list[TokenRow]:
    """Puts rows together so that each bin holds at most ``max_tokens`` (best-fit decreasing, stable).

    Args:
        rows: with ``input_ids`` and ``labels``.

    Returns:
        Rows with ``input_ids``, ``labels`` and ``lengths`` of the parts, in order.

    Raises:
        DataError: a row alone is longer than a bin.
    """
    bins: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (free tokens, bin), sorted
    for index in sorted(range(len(rows)), key=lambda i: (-len(rows[i]["input_ids"]), i)):
        size = len(rows[index]["input_ids"])
        if size > max_tokens:
            raise DataError(f"row {index} has {size} tokens, a packed row holds {max_tokens}")
        at = bisect.bisect_left(spaces, (size, -1))
        if at < len(spaces):
            free, bin_index = spaces.pop(at)
        else:
            free, bin_index = max_tokens, len(bins)
            bins.append([])
        bins[bin_index].append(index)
        bisect.insort(spaces, (free - size, bin_index))
    return [
        {
            "input_ids": [token for i in members for token in rows[i]["input_ids"]],
            "labels": [label for i in members for label in rows[i]["labels"]],
            "lengths": [len(rows[i]["input_ids"]) for i in members],
        }
        for members in bins
    ]
