"""Simulated people who rank answers: the gold judge seen through noise.

A person's impression of an answer is its gold score times how reliable the person is, plus Gumbel noise, plus
what the person is biased by. Ranking by such impressions is a Plackett-Luce model, and each pair in it
follows Bradley and Terry (1952): the better of two answers comes first with probability ``sigmoid(reliability
* SHARPNESS * difference of gold totals)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf.data.helpline.judge import score

SHARPNESS = 12.0
"""Log-odds per unit of gold total at reliability 1: rightness alone (0.5) is seen with probability 0.998."""


@dataclass(frozen=True)
class SimulatedAnnotator:
    """A person who ranks what is shown.

    Attributes:
        name: who it is, as written into the store.
        reliability: 0 is a random clicker, 1 rarely errs.
        position_bias: log-odds by which an answer shown one place earlier is preferred.
        length_bias: log-odds by which an answer that is ten words longer is preferred.
        seed: distinguishes the generators that :meth:`generator` makes for people of one pool.
        tie_margin: answers whose gold totals differ by less are called equal by a person who reads them; one
            of reliability 0 does not read and never calls a tie.
    """

    name: str
    reliability: float
    position_bias: float = 0.0
    length_bias: float = 0.0
    seed: int = 0
    tie_margin: float = 0.02

    def generator(self) -> np.random.Generator:
        """A fresh generator that depends on the person's seed only."""
        return np.random.default_rng([self.seed, *self.name.encode()])

    def rank(self, prompt: str, responses_in_shown_order: Sequence[str], rng: np.random.Generator) -> list[list[int]]:
        """Ranks the responses as shown.

        Args:
            prompt: what the caller asked.
            responses_in_shown_order: the candidates, first shown first.
            rng: where this judgment's noise comes from.

        Returns:
            Tiers of indexes into the responses, best tier first; indexes within one tier are tied and
            ascending.

        Raises:
            DataError: the prompt has no question of the helpline.
        """
        gold = np.array([score(prompt, response).total for response in responses_in_shown_order])
        tens_of_words = np.array([len(response.split()) / 10 for response in responses_in_shown_order])
        places = np.arange(len(gold))
        impression = self.reliability * SHARPNESS * gold + rng.gumbel(size=len(gold))
        impression += self.length_bias * tens_of_words - self.position_bias * places
        tiers: list[list[int]] = []
        for index in np.argsort(-impression).tolist():
            if tiers and self.reliability > 0 and abs(gold[index] - gold[tiers[-1][0]]) < self.tie_margin:
                tiers[-1].append(index)
            else:
                tiers.append([index])
        return [sorted(tier) for tier in tiers]


def default_pool(seed: int) -> list[SimulatedAnnotator]:
    """Five people of different reliability; the last one clicks at random."""
    return [
        SimulatedAnnotator("careful-cora", reliability=1.0, seed=seed),
        SimulatedAnnotator("steady-sam", reliability=0.7, seed=seed),
        SimulatedAnnotator("hasty-hana", reliability=0.45, position_bias=0.3, seed=seed),
        SimulatedAnnotator("wordy-will", reliability=0.4, length_bias=0.3, seed=seed),
        SimulatedAnnotator("random-rob", reliability=0.0, seed=seed),
    ]
