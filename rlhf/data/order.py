"""An endless order of rows: shuffled anew every time round, the same wherever a run goes on."""

from __future__ import annotations

import random

from rlhf.config import derive_seed


def rows_at(seed: int, name: str, num_rows: int, first: int, count: int) -> list[int]:
    """Rows number ``first`` to ``first + count`` of the order.

    Args:
        seed: the run's.
        name: what the rows are for: orders of different names are independent.
        num_rows: rows of one round; every round holds each once.
    """
    found: list[int] = []
    while len(found) < count:
        epoch, skip = divmod(first + len(found), num_rows)
        order = list(range(num_rows))
        random.Random(derive_seed(seed, name, epoch)).shuffle(order)
        found += order[skip : skip + count - len(found)]
    return found
