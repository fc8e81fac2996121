"""How often one side wins, and how much that says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf.stages.accuracy import wilson_interval

FEW_PROMPTS = 20
"""With fewer, the interval of an even match reaches from below 0.3 to above 0.7: it says nothing."""


@dataclass(frozen=True)
class WinRate:
    """Share of prompts won against the baseline, ties half, with a 95% interval over prompts.

    Attributes:
        num_prompts: different ones; several answers to one prompt count as one, by their mean.
        too_few: too few of them to say anything.
    """

    mean: float
    ci_low: float
    ci_high: float
    num_prompts: int
    too_few: bool


def win_rate(
    ours: Sequence[float] | np.ndarray, theirs: Sequence[float] | np.ndarray, groups: Sequence[str]
) -> WinRate:
    """Win rate of paired scores with Wilson's interval (Wilson 1927, J. Am. Stat. Assoc. 22, 209).

    A prompt's outcome lies in [0, 1]: a win is 1, a tie a half, several answers their mean. Of all that lies there with
    mean p, wins and losses alone vary most, by p (1 - p). So the interval of a proportion is wide enough for ties, too,
    and never a point: 10 of 10 say 0.72 to 1.

    Args:
        ours / theirs: (answers,) scores.
        groups: (answers,) what names each answer's prompt, see ``prompt_hash``.
    """
    wins = np.where(np.asarray(ours) > theirs, 1.0, np.where(np.asarray(ours) == theirs, 0.5, 0.0))
    outcomes: dict[str, list[float]] = {}
    for group, win in zip(groups, wins.tolist(), strict=True):
        outcomes.setdefault(group, []).append(win)
    count = len(outcomes)
    mean = sum(sum(found) / len(found) for found in outcomes.values()) / count
    low, high = wilson_interval(mean * count, count)
    return WinRate(mean, min(low, mean), max(high, mean), count, count < FEW_PROMPTS)
