"""Simulated annotators and the ceiling that their noise leaves to a reward model."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.helpline.agreement import JudgedPair, ceiling_from_agreement, pair_agreement_ceiling
from rlhf.data.helpline.annotators import SHARPNESS, SimulatedAnnotator, default_pool
from rlhf.data.helpline.judge import score
from rlhf.errors import DataError

PROMPT = "What is a good swap for cola?"
GOOD = "Have cold water instead of cola."
BAD = "Have maple syrup instead of cola."
RUDE = "Listen to me now. Have cold water instead of cola."


def share_first(annotator: SimulatedAnnotator, first: str, second: str, times: int = 3000) -> float:
    """How often the first response is ranked above the second, ties half."""
    rng = np.random.default_rng(0)
    wins = 0.0
    for _ in range(times):
        tiers = annotator.rank(PROMPT, [first, second], rng)
        wins += 0.5 if len(tiers) == 1 else float(tiers[0] == [0])
    return wins / times


def test_a_pair_follows_bradley_terry() -> None:
    gap = score(PROMPT, GOOD).total - score(PROMPT, RUDE).total
    for reliability in (0.2, 0.6):
        expected = 1 / (1 + math.exp(-reliability * SHARPNESS * gap))
        share = share_first(SimulatedAnnotator("a", reliability), GOOD, RUDE)
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 3000)


def test_more_reliable_people_are_right_more_often() -> None:
    shares = [share_first(SimulatedAnnotator("a", r), GOOD, RUDE) for r in (0.0, 0.15, 0.4, 1.0)]
    assert all(low + 0.03 < high for low, high in itertools.pairwise(shares)), shares
    assert shares[-1] > 0.8


def test_random_clicker_knows_nothing() -> None:
    clicker = default_pool(0)[-1]
    assert clicker.reliability == 0
    assert abs(share_first(clicker, GOOD, BAD) - 0.5) < 0.04
    rng = np.random.default_rng(0)
    assert all(len(clicker.rank(PROMPT, [GOOD, GOOD], rng)) == 2 for _ in range(20)), "a tie would tell gold"


def test_biases_show() -> None:
    hasty = SimulatedAnnotator("hasty", 0.3, position_bias=1.5)
    assert share_first(hasty, RUDE, GOOD) > 0.5 + share_first(SimulatedAnnotator("b", 0.3), RUDE, GOOD) - 0.5
    assert share_first(hasty, RUDE, GOOD) > 0.6
    wordy = SimulatedAnnotator("wordy", 0.0, length_bias=5.0)
    assert share_first(wordy, RUDE, GOOD) > 0.8


def test_ranks_are_partitions_with_ties_only_between_equals() -> None:
    shown = [BAD, GOOD, GOOD, RUDE]
    annotator = SimulatedAnnotator("a", 1.0)
    rng = np.random.default_rng(1)
    tied = 0
    for _ in range(50):
        tiers = annotator.rank(PROMPT, shown, rng)
        assert sorted(itertools.chain(*tiers)) == [0, 1, 2, 3]
        assert all(tier in ([0], [1], [2], [3], [1, 2]) for tier in tiers)
        tied += [1, 2] in tiers
    assert tied > 25
    assert annotator.rank(PROMPT, shown, np.random.default_rng(5)) == annotator.rank(
        PROMPT, shown, np.random.default_rng(5)
    )
    assert annotator.rank(PROMPT, [], rng) == []


def test_pool_has_distinct_people_with_their_own_generators() -> None:
    pool = default_pool(3)
    assert len({person.name for person in pool}) == 5
    draws = [person.generator().random() for person in (*pool, *default_pool(4))]
    assert len(set(draws)) == 10
    assert draws[0] == default_pool(3)[0].generator().random()


votes = st.lists(st.sampled_from((-1, 0, 1)), min_size=0, max_size=5).map(tuple)
gold = st.sampled_from((0.1, 0.2, 0.3))


@given(st.lists(st.tuples(gold, gold, votes), min_size=1, max_size=12))
def test_ceiling_matches_brute_force(raw: list[tuple[float, float, tuple[int, ...]]]) -> None:
    pairs = [JudgedPair(*row) for row in raw]
    hits = []
    agree = []
    for first, second, given_votes in raw:
        for vote in given_votes:
            if vote:
                hits.append(0.5 if first == second else float((first > second) == (vote > 0)))
        for a, b in itertools.combinations([v for v in given_votes if v], 2):
            agree.append(a == b)
    if not hits:
        with pytest.raises(DataError, match="not ties"):
            pair_agreement_ceiling(pairs)
        return
    found = pair_agreement_ceiling(pairs)
    assert found.ceiling == pytest.approx(np.mean(hits), abs=1e-12)
    assert (found.num_votes, found.num_comparisons) == (len(hits), len(agree))
    if agree:
        assert found.agreement == pytest.approx(np.mean(agree), abs=1e-12)
    else:
        assert math.isnan(found.agreement) and math.isnan(found.estimated_ceiling)


def test_agreement_alone_finds_the_ceiling_when_its_assumptions_hold() -> None:
    rng = np.random.default_rng(0)
    truth = 0.8
    pairs = [JudgedPair(1.0, 0.0, tuple(int(v) for v in np.where(rng.random(3) < truth, 1, -1))) for _ in range(8000)]
    found = pair_agreement_ceiling(pairs)
    assert abs(found.ceiling - truth) < 0.01
    assert abs(found.estimated_ceiling - truth) < 0.015


def test_mixed_pairs_make_the_estimate_too_high_never_too_low() -> None:
    rng = np.random.default_rng(0)
    pairs = [
        JudgedPair(1.0, 0.0, tuple(int(v) for v in np.where(rng.random(3) < p, 1, -1)))
        for p in (0.55, 0.95)
        for _ in range(5000)
    ]
    found = pair_agreement_ceiling(pairs)
    assert found.ceiling == pytest.approx(0.75, abs=0.01)
    assert found.estimated_ceiling > found.ceiling + 0.03


def test_agreement_formula_ends() -> None:
    assert ceiling_from_agreement(1.0) == 1.0
    assert ceiling_from_agreement(0.5) == 0.5
    assert ceiling_from_agreement(0.3) == 0.5
