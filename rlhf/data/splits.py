"""Training and evaluation rows that share no prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

from rlhf.data.schema import Row, prompt_hash
from rlhf.errors import ConfigError, DataError

RowType = TypeVar("RowType", bound=Row)


def split_by_prompt(rows: Sequence[RowType], *, eval_fraction: float, seed: int) -> tuple[list[RowType], list[RowType]]:
    """Split rows so that all rows of one prompt are on one side.

    The side depends on the prompt and the seed alone: rows that are appended later, and the order of rows,
    move no row that was there before. The evaluation side holds about ``eval_fraction`` of the *prompts*.

    Args:
        rows: rows of one kind.
        eval_fraction: from 0 (all rows train) to 1 (all rows evaluate).
        seed: chooses another split.

    Returns:
        training rows and evaluation rows, each in the given order.

    Raises:
        ConfigError: ``eval_fraction`` lies outside [0, 1].
        DataError: a side that was asked for is empty.
    """
    if not 0.0 <= eval_fraction <= 1.0:
        raise ConfigError(f"eval_fraction={eval_fraction} lies outside [0, 1]; use for example 0.1")
    sides: dict[str, bool] = {}
    train: list[RowType] = []
    evaluation: list[RowType] = []
    for row in rows:
        name = prompt_hash(row.prompt)
        if name not in sides:
            sides[name] = _position(name, seed) < eval_fraction
        (evaluation if sides[name] else train).append(row)
    _refuse_empty("evaluation", evaluation, eval_fraction > 0.0, len(sides), eval_fraction)
    _refuse_empty("training", train, eval_fraction < 1.0, len(sides), eval_fraction)
    return train, evaluation


def overlap(train: Sequence[RowType], evaluation: Sequence[Row]) -> tuple[list[RowType], list[RowType]]:
    """Parts training rows by whether their prompt is held out.

    Returns:
        training rows whose prompts are no evaluation row's, and the others, each in the given order.
    """
    held_out = {prompt_hash(row.prompt) for row in evaluation}
    own: list[RowType] = []
    shared: list[RowType] = []
    for row in train:
        (shared if prompt_hash(row.prompt) in held_out else own).append(row)
    return own, shared


def _position(name: str, seed: int) -> float:
    """Return the prompt's place in [0, 1), uniform over prompts."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _refuse_empty(side: str, rows: Sequence[Row], wanted: bool, num_prompts: int, eval_fraction: float) -> None:
    if wanted and not rows:
        raise DataError(
            f"the {side} side is empty: {num_prompts} different prompts at eval_fraction={eval_fraction}; "
            f"add prompts, change eval_fraction, or try another seed"
        )
