"""How well a perfect reward model can do against people who disagree.

A reward model is measured against held-out votes, and votes are noisy: not even the true order agrees with
all of them. The share that it agrees with is the ceiling that a reward model's accuracy has to be read
beside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf.errors import DataError


@dataclass(frozen=True)
class JudgedPair:
    """Two responses to one prompt and what people said.

    Attributes:
        gold_first: gold score of the first response.
        gold_second: gold score of the second.
        votes: one per person: 1 prefers the first, -1 the second, 0 calls a tie.
    """

    gold_first: float
    gold_second: float
    votes: tuple[int, ...]


@dataclass(frozen=True)
class AgreementCeiling:
    """What :func:`pair_agreement_ceiling` found.

    Attributes:
        ceiling: accuracy of the true gold order against the votes that are not ties; equal gold scores count
            half.
        agreement: chance that two people who both prefer one response of a pair prefer the same one; NaN if
            no pair has two.
        estimated_ceiling: the ceiling as estimated from the agreement alone; NaN if the agreement is.
        num_votes: votes that are not ties.
        num_comparisons: couples of such votes on one pair.
    """

    ceiling: float
    agreement: float
    estimated_ceiling: float
    num_votes: int
    num_comparisons: int


def ceiling_from_agreement(agreement: float) -> float:
    """Accuracy of the true order against one vote, from how often two votes on one pair agree.

    If every vote shows the true order with probability p >= 1/2, independently of other votes on the pair,
    then two votes agree with probability a = p^2 + (1 - p)^2, hence p = (1 + sqrt(2a - 1)) / 2. The
    assumption is one p for all people and all pairs: where p varies between pairs the result is too high,
    never too low (Jensen), and a bias that people share raises it too, because people then agree on something
    that is not the true order. Agreement below 1/2 gives 1/2.
    """
    return (1.0 + math.sqrt(max(0.0, 2.0 * agreement - 1.0))) / 2.0


def pair_agreement_ceiling(pairs: Sequence[JudgedPair]) -> AgreementCeiling:
    """Measures the ceiling from votes and gold scores, and estimates it from the votes alone.

    Args:
        pairs: judged pairs; every vote that is not a tie weighs the same.

    Raises:
        DataError: no pair has a vote that is not a tie.
    """
    hits = 0.0
    num_votes = num_comparisons = num_agreeing = 0
    for pair in pairs:
        first, second = pair.votes.count(1), pair.votes.count(-1)
        num_votes += first + second
        if pair.gold_first == pair.gold_second:
            hits += (first + second) / 2
        else:
            hits += first if pair.gold_first > pair.gold_second else second
        num_comparisons += math.comb(first + second, 2)
        num_agreeing += math.comb(first, 2) + math.comb(second, 2)
    if num_votes == 0:
        raise DataError("no vote prefers one response over the other: a ceiling needs votes that are not ties")
    agreement = num_agreeing / num_comparisons if num_comparisons else math.nan
    estimate = ceiling_from_agreement(agreement) if num_comparisons else math.nan
    return AgreementCeiling(hits / num_votes, agreement, estimate, num_votes, num_comparisons)
