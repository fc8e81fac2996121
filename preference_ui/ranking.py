"""From rankings to weighted pairs.

A ranking is a list of tiers, best first. Each couple from two tiers is a pair; a couple inside a tier is a tie,
which trains as a pair of probability one half. All pairs of a prompt weigh 1 together, however many responses
and raters it has: pairs of one ranking are far from independent, and a prompt with nine responses (36 pairs)
must not outvote 35 prompts with two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

Tiers = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Ranking:
    """One judgment, ready for counting.

    Attributes:
        rater: who ranked.
        group: the prompt; pairs of one group share one unit of weight.
        tiers: response names, best tier first.
        margin: distance stated for the top pair, 0 when none was.
        all_bad: the rater accepts none of the responses.
    """

    rater: str
    group: str
    tiers: tuple[tuple[str, ...], ...]
    margin: float = 0.0
    all_bad: bool = False


@dataclass(frozen=True)
class Pair:
    """A weighted comparison. ``probability`` is the share that prefers ``chosen``, at least one half."""

    group: str
    chosen: str
    rejected: str
    probability: float
    margin: float
    weight: float
    raters: tuple[str, ...] = ()


@dataclass(frozen=True)
class PairOptions:
    """How judgments become pairs.

    Attributes:
        votes: ``soft``: one row per couple with the weighted share of raters as probability; ``each``: one row
            per rater and couple.
        ties: ``soft``: a tie counts one half for either side; ``drop``: it is not counted.
        reliability: weight per rater, for those missing 1; a rater of weight 0 is left out.
    """

    votes: Literal["soft", "each"] = "soft"
    ties: Literal["soft", "drop"] = "soft"
    reliability: Mapping[str, float] = field(default_factory=dict)


def place(tiers: Tiers) -> dict[str, int]:
    """Tier index per response, 0 best."""
    return {name: index for index, tier in enumerate(tiers) for name in tier}


def preference(places: Mapping[str, int], first: str, second: str) -> float:
    """1 when ``first`` is ranked above ``second``, 0 below, one half in the same tier."""
    if places[first] == places[second]:
        return 0.5
    return 1.0 if places[first] < places[second] else 0.0


def strict_pairs(tiers: Tiers) -> list[tuple[str, str]]:
    """(better, worse) for every couple from two tiers."""
    return [(a, b) for high, low in combinations(tiers, 2) for a in high for b in low]


def tied_pairs(tiers: Tiers) -> list[tuple[str, str]]:
    """Every couple inside a tier."""
    return [couple for tier in tiers for couple in combinations(tier, 2)]


def follows_key(tiers: Tiers, key: Tiers) -> bool:
    """Whether a ranking has every order of a gold item's key right; what the key ties may stand in any order."""
    places = place(tiers)
    return all(places[better] < places[worse] for better, worse in strict_pairs(key))


def pair_agreement(one: Tiers, other: Tiers) -> float:
    """Mean agreement of two rankings over their common couples: same 1, tie against order 0.5, opposite 0.

    Returns 1 when they have no couple in common.
    """
    a, b = place(one), place(other)
    common = sorted(a.keys() & b.keys())
    scores = [1 - abs(preference(a, x, y) - preference(b, x, y)) for x, y in combinations(common, 2)]
    return sum(scores) / len(scores) if scores else 1.0


def mean_agreement(rankings: Sequence[Tiers]) -> float:
    """Mean of ``pair_agreement`` over all couples of rankings; 1 for fewer than two."""
    scores = [pair_agreement(a, b) for a, b in combinations(rankings, 2)]
    return sum(scores) / len(scores) if scores else 1.0


@dataclass
class _Tally:
    weight: float = 0.0
    first: float = 0.0
    margin: float = 0.0
    raters: list[str] = field(default_factory=list)


def _margin(ranking: Ranking, places: Mapping[str, int], first: str, second: str) -> float:
    """Signed towards ``first``. The stated distance separates the top tier from all below, at the least."""
    if 0 not in (places[first], places[second]) or places[first] == places[second]:
        return 0.0
    return ranking.margin if places[first] == 0 else -ranking.margin


def _oriented(
    group: str, first: str, second: str, share: float, margin: float, weight: float, raters: tuple[str, ...]
) -> Pair:
    if share >= 0.5:
        return Pair(group, first, second, share, max(0.0, margin), weight, raters)
    return Pair(group, second, first, 1.0 - share, max(0.0, -margin), weight, raters)


def _group_pairs(group: str, rankings: Sequence[Ranking], options: PairOptions) -> list[Pair]:
    tallies: dict[tuple[str, str], _Tally] = {}
    single: list[Pair] = []
    for ranking in rankings:
        trust = options.reliability.get(ranking.rater, 1.0)
        if trust <= 0:
            continue
        places = place(ranking.tiers)
        for first, second in combinations(sorted(places), 2):
            share = preference(places, first, second)
            if share == 0.5 and options.ties == "drop":
                continue
            margin = _margin(ranking, places, first, second)
            if options.votes == "each":
                single.append(_oriented(group, first, second, share, margin, trust, (ranking.rater,)))
                continue
            tally = tallies.setdefault((first, second), _Tally())
            tally.weight += trust
            tally.first += trust * share
            tally.margin += trust * margin
            tally.raters.append(ranking.rater)
    for (first, second), tally in sorted(tallies.items()):
        single.append(
            _oriented(
                group,
                first,
                second,
                tally.first / tally.weight,
                tally.margin / tally.weight,
                1.0,
                tuple(sorted(tally.raters)),
            )
        )
    total = sum(pair.weight for pair in single)
    return [Pair(p.group, p.chosen, p.rejected, p.probability, p.margin, p.weight / total, p.raters) for p in single]


def preference_pairs(rankings: Sequence[Ranking], options: PairOptions | None = None) -> list[Pair]:
    """Turn judgments into weighted pairs, sorted by group; the weights of each group sum to 1.

    In ``soft`` mode each couple weighs the same within its prompt and its probability carries how the raters
    split; in ``each`` mode a rater's rows weigh in proportion to the rater's reliability.
    """
    options = options or PairOptions()
    groups: dict[str, list[Ranking]] = {}
    for ranking in rankings:
        groups.setdefault(ranking.group, []).append(ranking)
    return [pair for group in sorted(groups) for pair in _group_pairs(group, groups[group], options)]
