"""What people who ranked the same items have in common: agreement, tau-b, alpha and kappa."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np

from preference_ui.export import JudgmentRecord
from preference_ui.ranking import place
from preference_ui.statistics.agreement import alpha_of_coincidences, coincidences, kendall_tau_b
from preference_ui.statistics.intervals import Interval, percentile_interval, ratio_interval, resampled_sums

# A ranking without names: the tier of each response, in the order of their ids.
Places = tuple[int, ...]
# Few rankings differ in more than names (75 of four responses), so figures of two are kept.
_PATTERNS = 20_000


@dataclass(frozen=True, slots=True)
class RankedVote:
    """A judgment with its ranking in the form in which rankings are compared."""

    record: JudgmentRecord
    places: Places


Items = dict[str, list[RankedVote]]


def votes_by_item(records: Sequence[JudgmentRecord]) -> Items:
    grouped: Items = {}
    for record in records:
        grouped.setdefault(record.item_id, []).append(RankedVote(record, _places(record)))
    return grouped


def first_votes(items: Items, extended: dict[str, int]) -> Items:
    """Without the extra votes that only items in dispute get: they would distort every figure of agreement.

    An item's first votes are those of the people who were asked first, whenever they changed their minds.
    """
    first = dict(items)
    for item_id, overlap in extended.items():
        if item_id in items:
            first[item_id] = sorted(items[item_id], key=lambda v: v.record.first_event)[:overlap]
    return first


def _places(record: JudgmentRecord) -> Places:
    places = place(record.tiers)
    return tuple(places[name] for name in sorted(places))


def _labels(places: Places) -> list[int]:
    """Per couple of responses: 0 second preferred, 1 tie, 2 first."""
    return [1 + (a < b) - (a > b) for a, b in combinations(places, 2)]


@lru_cache(maxsize=_PATTERNS)
def _agree(one: Places, other: Places) -> float:
    gaps = [abs(a - b) for a, b in zip(_labels(one), _labels(other), strict=True)]
    return 1 - sum(gaps) / (2 * len(gaps))


@lru_cache(maxsize=_PATTERNS)
def _tau(one: Places, other: Places) -> float:
    return kendall_tau_b(one, other)


@dataclass(frozen=True)
class _Pattern:
    """What the rankings of one item add to the figures of agreement: sums, with the number of what is summed."""

    agree: tuple[float, float]
    tau: tuple[float, float]
    coincidences: np.ndarray


def _pattern(rankings: Sequence[Places]) -> _Pattern:
    couples = list(combinations(rankings, 2))
    taus = [v for v in (_tau(a, b) for a, b in couples) if not math.isnan(v)]
    agree = sum(_agree(a, b) for a, b in couples), float(len(couples))
    return _Pattern(agree, (sum(taus), float(len(taus))), _item_coincidences(rankings))


def agreement_of(items: Items) -> tuple[Interval, Interval, Interval]:
    """Pair agreement, tau-b and Krippendorff's alpha of pair labels.

    Items whose rankings differ in names only count alike, so each pattern of rankings is looked at once.
    """
    numbers: dict[tuple[Places, ...], int] = {}
    found: list[_Pattern] = []
    of_item = []
    for votes in items.values():
        if len(votes) > 1:
            key = tuple(sorted(vote.places for vote in votes))
            number = numbers.setdefault(key, len(found))
            if number == len(found):
                found.append(_pattern(key))
            of_item.append(number)
    if not of_item:
        nothing = Interval(math.nan, math.nan, math.nan, 0)
        return nothing, nothing, nothing
    rows = np.array(of_item)
    agree, tau = (np.array([getattr(p, name) for p in found])[rows] for name in ("agree", "tau"))
    alpha = _alpha_pairs(np.stack([p.coincidences for p in found])[rows])
    return ratio_interval(agree[:, 0], agree[:, 1]), ratio_interval(tau[:, 0], tau[:, 1]), alpha


def ratio_of(rows: list[tuple[float, float]]) -> Interval:
    table = np.array(rows, float).reshape(-1, 2)
    return ratio_interval(table[:, 0], table[:, 1])


def _item_coincidences(rankings: Sequence[Places]) -> np.ndarray:
    """Of one item's pair labels: (label, label)."""
    return _mirrored(coincidences(np.array([_labels(places) for places in rankings]), 3).sum(axis=0))


@lru_cache(maxsize=_PATTERNS)
def _confusion(one: Places, other: Places) -> np.ndarray:
    """Pair labels of two rankings against each other, each couple counted both ways: (label, label)."""
    table = np.zeros((3, 3))
    np.add.at(table, (_labels(one), _labels(other)), 1.0)
    return 2 * _mirrored(table)


def _alpha_pairs(matrices: np.ndarray, num_samples: int = 1000) -> Interval:
    """Of coincidences per item: (item, label, label)."""
    scale = np.arange(3.0)
    value = alpha_of_coincidences(matrices.sum(axis=0), "nominal", scale)
    sums = resampled_sums(matrices, num_samples, seed=0)
    samples = np.array([alpha_of_coincidences(m, "nominal", scale) for m in sums])
    return percentile_interval(value, samples, len(matrices))


def _mirrored(matrix: np.ndarray) -> np.ndarray:
    # Which response of a couple is called first is arbitrary: count both ways, so that it cannot matter.
    return (matrix + matrix[::-1, ::-1]) / 2


def kappa_by_couple(
    items: Items, shown: set[str], num_samples: int = 400
) -> tuple[dict[tuple[str, str], tuple[float, int]], dict[tuple[str, str], Interval]]:
    """Cohen's kappa per couple of handles with the number of pair labels; by item its interval for those shown."""
    tables: dict[tuple[str, str], list[np.ndarray]] = {}
    for votes in items.values():
        if len(votes) > 1:
            ordered = sorted(votes, key=lambda v: v.record.handle)
            for one, other in combinations(ordered, 2):
                table = _confusion(one.places, other.places)
                tables.setdefault((one.record.handle, other.record.handle), []).append(table)
    values, intervals = {}, {}
    for couple, found in tables.items():
        stack = np.stack(found)
        value = float(kappa_of(stack.sum(axis=0)[None])[0])
        values[couple] = (value, round(float(stack.sum()) / 2))
        if shown.issuperset(couple):
            samples = kappa_of(resampled_sums(stack, num_samples, seed=0))
            intervals[couple] = percentile_interval(value, samples, len(found))
    return values, intervals


def kappa_of(tables: np.ndarray) -> np.ndarray:
    """Cohen's kappa of confusion tables (sample, 3, 3); NaN where chance leaves no room."""
    total = tables.sum(axis=(1, 2))
    seen = np.trace(tables, axis1=1, axis2=2) / total
    chance = (tables.sum(axis=1) * tables.sum(axis=2)).sum(axis=1) / total**2
    return np.divide(seen - chance, 1 - chance, out=np.full(total.shape, math.nan), where=chance < 1 - 1e-12)


def agreement_with_others(items: Items) -> dict[str, float]:
    """Mean agreement per annotator with everybody else who ranked the same."""
    scores: dict[str, list[float]] = {}
    for votes in items.values():
        for a, b in combinations(votes, 2):
            score = _agree(a.places, b.places)
            scores.setdefault(a.record.annotator_id, []).append(score)
            scores.setdefault(b.record.annotator_id, []).append(score)
    return {annotator_id: float(np.mean(found)) for annotator_id, found in scores.items()}
