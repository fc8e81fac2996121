"""Rankings to pairs: what the weights and probabilities must add up to."""

from __future__ import annotations

from itertools import combinations
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preference_ui.ranking import (
    PairOptions,
    Ranking,
    mean_agreement,
    pair_agreement,
    preference_pairs,
    strict_pairs,
    tied_pairs,
)


@st.composite
def tier_lists(draw: st.DrawFn, names: str = "abcde") -> tuple[tuple[str, ...], ...]:
    """Any ranking of the names with ties."""
    places = draw(st.lists(st.integers(0, len(names) - 1), min_size=len(names), max_size=len(names)))
    return tuple(tuple(n for n, p in zip(names, places, strict=True) if p == tier) for tier in sorted(set(places)))


rankings = st.lists(
    st.builds(Ranking, st.sampled_from("xyz"), st.sampled_from(["g", "h"]), tier_lists(), st.sampled_from([0.0, 0.5])),
    min_size=1, max_size=6)  # fmt: skip


@given(tier_lists())
def test_every_couple_is_a_pair_or_a_tie(tiers: tuple[tuple[str, ...], ...]) -> None:
    strict, tied = strict_pairs(tiers), tied_pairs(tiers)
    assert len(strict) + len(tied) == comb(5, 2)
    assert {frozenset(p) for p in (*strict, *tied)} == {frozenset(c) for c in combinations("abcde", 2)}


@given(rankings, st.sampled_from(["soft", "each"]))
def test_each_prompt_weighs_one(given_rankings: list[Ranking], votes: str) -> None:
    pairs = preference_pairs(given_rankings, PairOptions(votes=votes))  # type: ignore[arg-type]
    for group in {r.group for r in given_rankings}:
        assert sum(p.weight for p in pairs if p.group == group) == pytest.approx(1.0, abs=1e-12)
    assert all(0.5 <= p.probability <= 1 and p.margin >= 0 for p in pairs)


@given(rankings)
def test_soft_probability_is_the_share_of_raters(given_rankings: list[Ranking]) -> None:
    for pair in preference_pairs(given_rankings):
        own = [r for r in given_rankings if r.group == pair.group]
        wins = sum((pair.chosen, pair.rejected) in strict_pairs(r.tiers) for r in own)
        losses = sum((pair.rejected, pair.chosen) in strict_pairs(r.tiers) for r in own)
        assert pair.probability == pytest.approx((wins + (len(own) - wins - losses) / 2) / len(own))


@given(rankings, st.randoms())
def test_the_order_of_judgments_does_not_matter(given_rankings: list[Ranking], rng: object) -> None:
    shuffled = list(given_rankings)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = preference_pairs(given_rankings), preference_pairs(shuffled)
    assert [(p.group, {p.chosen, p.rejected}) for p in one] == [(p.group, {p.chosen, p.rejected}) for p in other]
    assert [p.probability for p in one] == pytest.approx([p.probability for p in other])


@given(tier_lists(), tier_lists())
def test_agreement_is_symmetric_and_one_only_for_equals(a: tuple, b: tuple) -> None:
    assert pair_agreement(a, b) == pair_agreement(b, a)
    assert pair_agreement(a, a) == 1
    assert 0 <= pair_agreement(a, b) <= 1
    assert (pair_agreement(a, b) == 1) == (a == b)


def test_worked_example() -> None:
    one = Ranking("x", "g", (("a",), ("b", "c")), margin=0.5)
    other = Ranking("y", "g", (("b",), ("a",), ("c",)), margin=1.0)
    pairs = {(p.chosen, p.rejected): p for p in preference_pairs([one, other])}
    assert pairs["a", "b"].probability == 0.5 and pairs["a", "b"].margin == 0.0
    assert pairs["a", "c"].probability == 1.0 and pairs["a", "c"].margin == 0.25
    assert pairs["b", "c"].probability == 0.75 and pairs["b", "c"].margin == 0.5
    assert all(p.weight == pytest.approx(1 / 3) for p in pairs.values())
    assert mean_agreement([one.tiers, other.tiers]) == pytest.approx((0 + 1 + 0.5) / 3)


def test_reliability_weights_votes_and_zero_leaves_out() -> None:
    one, other = Ranking("x", "g", (("a",), ("b",))), Ranking("y", "g", (("b",), ("a",)))
    (pair,) = preference_pairs([one, other], PairOptions(reliability={"x": 0.9, "y": 0.3}))
    assert (pair.chosen, pair.probability) == ("a", pytest.approx(0.75))
    (alone,) = preference_pairs([one, other], PairOptions(reliability={"x": 0.0}))
    assert (alone.chosen, alone.probability, alone.raters) == ("b", 1.0, ("y",))
    each = preference_pairs([one, other], PairOptions(votes="each", reliability={"x": 0.9, "y": 0.3}))
    assert sorted((p.chosen, round(p.weight, 6)) for p in each) == [("a", 0.75), ("b", 0.25)]
    assert preference_pairs([Ranking("x", "g", (("a", "b"),))], PairOptions(ties="drop")) == []
