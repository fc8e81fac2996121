"""Rows of several sources as one data set, each source as often as it is to be seen."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from rlhf.data.schema import Row, prompt_hash

RowType = TypeVar("RowType", bound=Row)


def mixed(sources: Sequence[tuple[Sequence[RowType], float]]) -> list[RowType]:
    """All rows, source by source; ids get the source's number in front (``1/train.jsonl:7``), copies their own behind.

    Args:
        sources: rows and their weight: 2 takes every row twice, 0.5 those of about half of the prompts, 1.5 all rows
            and these once more. Which prompts those are depends on the prompts alone.
    """
    found: list[RowType] = []
    for number, (rows, weight) in enumerate(sources):
        whole, share = int(weight), weight % 1
        for copy in range(whole + 1):
            taken = rows if copy < whole else [row for row in rows if _position(prompt_hash(row.prompt)) < share]
            suffix = f"#{copy + 1}" if copy else ""
            found += [replace(row, id=f"{number}/{row.id}{suffix}") for row in taken]
    return found


def _position(name: str) -> float:
    """A prompt's place in [0, 1), uniform over prompts, and none that a split by hash has to do with."""
    return int.from_bytes(hashlib.sha256(f"mix:{name}".encode()).digest()[:8], "big") / 2**64
