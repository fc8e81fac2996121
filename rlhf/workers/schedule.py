"""How many optimizer steps a stage takes, and which rows each step sees."""

from __future__ import annotations

import math
import random

from rlhf.config import derive_seed


def optimizer_steps(num_rows: int, minibatch: int, num_epochs: float, max_steps: int | None) -> int:
    """Steps that show every row ``num_epochs`` times, rounded up, at most ``max_steps``."""
    steps = max(1, math.ceil(num_rows * num_epochs / minibatch))
    return steps if max_steps is None else min(steps, max_steps)


def row_order(num_rows: int, count: int, seed: int, stage: str) -> list[int]:
    """The first ``count`` entries of endless shuffled epochs.

    Every step is a whole minibatch: the last one is filled up from the next shuffle, so the order of rows depends on
    neither the number of ranks nor the micro-batch size.
    """
    order: list[int] = []
    epoch = 0
    while len(order) < count:
        rows = list(range(num_rows))
        random.Random(derive_seed(seed, stage, "rows", epoch)).shuffle(rows)
        order.extend(rows)
        epoch += 1
    return order[:count]
