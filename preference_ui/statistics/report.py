"""The quality report of a project, from its judgments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from preference_ui.export import JudgmentRecord, Snapshot
from preference_ui.ranking import Tiers, pair_agreement, place, preference, strict_pairs
from preference_ui.settings import ProjectSettings
from preference_ui.statistics.agreement import (
    alpha_of_coincidences,
    coincidences,
    implied_accuracy,
    kendall_tau_b,
    krippendorff_alpha,
)
from preference_ui.statistics.bradley_terry import RaterModel, comparisons_of, fit_rater_model
from preference_ui.statistics.intervals import (
    Interval,
    binomial_test,
    percentile_interval,
    ratio_interval,
    resample_counts,
    wilson_interval,
)

Ratings = dict[tuple[str, str], dict[str, dict[str, int]]]
_LABELS = {0.0: 0, 0.5: 1, 1.0: 2}


@dataclass(frozen=True)
class RaterReport:
    """One rater's figures; NaN where there is nothing to measure."""

    annotator_id: str
    handle: str
    votes: int
    median_seconds: float
    agreement_with_others: float
    gold_accuracy: Interval
    self_consistency: Interval
    first_slot_share: float
    beta: float
    beta_error: float
    reliability: float


@dataclass(frozen=True)
class ProjectReport:
    """A project's figures. Agreement counts items with at least two raters; intervals resample items.

    Attributes:
        pair_agreement: mean over rater couples and response couples; a tie against an order counts one half.
        kendall_tau: mean tau-b over rater couples.
        alpha_pairs: Krippendorff's alpha, nominal, on "first, tie, second" per response couple.
        alpha_axes: Krippendorff's alpha, ordinal, per rating axis.
        kappa: Cohen's kappa on pair labels by couple of handles, with the number of shared response couples.
        kappa_intervals: the same with a bootstrap interval by item.
        first_slot: share of votes that put the response shown first alone on top; ``first_slot_expected`` is the
            share without position bias, ``first_slot_p`` the chance of a share as extreme.
        longer_preferred: share of strict pairs won by the longer text.
        gold_accuracy: share of gold items with every expected order right.
        self_consistency: pair agreement of repeated answers with the first ones.
        reward_model_ceiling: accuracy against single votes that a perfect reward model would reach.
        position_bias, length_bias: logits per whole list length and per doubling-by-e of length.
        topics: votes per topic.
    """

    project: str
    votes: int
    items: int
    pair_agreement: Interval
    kendall_tau: Interval
    alpha_pairs: Interval
    alpha_axes: dict[str, float]
    kappa: dict[tuple[str, str], tuple[float, int]]
    kappa_intervals: dict[tuple[str, str], Interval]
    tie_share: float
    all_bad_share: float
    first_slot: Interval
    first_slot_expected: float
    first_slot_p: float
    longer_preferred: Interval
    median_seconds: float
    gold_accuracy: Interval
    self_consistency: Interval
    reward_model_ceiling: float
    position_bias: float
    length_bias: float
    raters: list[RaterReport] = field(default_factory=list)
    topics: dict[str, int] = field(default_factory=dict)

    def reliability(self) -> dict[str, float]:
        """Weight in [0, 1] per annotator id, for ``PairOptions``."""
        return {r.annotator_id: r.reliability for r in self.raters}


def _items(records: Sequence[JudgmentRecord]) -> dict[str, list[JudgmentRecord]]:
    grouped: dict[str, list[JudgmentRecord]] = {}
    for record in records:
        grouped.setdefault(record.item_id, []).append(record)
    return grouped


def _first_votes(items: dict[str, list[JudgmentRecord]], settings: ProjectSettings) -> dict[str, list[JudgmentRecord]]:
    """Without the extra votes that only items in dispute get: they would distort every figure of agreement."""
    if not settings.adaptive_extra:
        return items
    return {item_id: records[: settings.overlap] for item_id, records in items.items()}


def _agreement(items: dict[str, list[JudgmentRecord]]) -> tuple[Interval, Interval]:
    agree: list[tuple[float, float]] = []
    taus: list[tuple[float, float]] = []
    for records in items.values():
        couples = list(combinations([r.tiers for r in records], 2))
        if couples:
            agree.append((sum(pair_agreement(a, b) for a, b in couples), len(couples)))
            values = [v for v in (_tau(a, b) for a, b in couples) if not math.isnan(v)]
            taus.append((sum(values), len(values)))
    return _ratio(agree), _ratio(taus)


def _tau(one: Tiers, other: Tiers) -> float:
    a, b = place(one), place(other)
    names = sorted(a.keys() & b.keys())
    return kendall_tau_b([a[n] for n in names], [b[n] for n in names])


def _ratio(rows: list[tuple[float, float]]) -> Interval:
    table = np.array(rows, float).reshape(-1, 2)
    return ratio_interval(table[:, 0], table[:, 1])


def _pair_labels(records: Sequence[JudgmentRecord]) -> np.ndarray:
    """(rater, couple) codes of one item: 0 second preferred, 1 tie, 2 first."""
    names = sorted(n for tier in records[0].tiers for n in tier)
    couples = list(combinations(names, 2))
    places = [place(r.tiers) for r in records]
    return np.array([[_LABELS[preference(p, a, b)] for a, b in couples] for p in places])


def _alpha_pairs(items: dict[str, list[JudgmentRecord]], num_samples: int = 1000) -> Interval:
    shared = [records for records in items.values() if len(records) > 1]
    if not shared:
        return Interval(math.nan, math.nan, math.nan, 0)
    matrices = np.stack([_mirrored(coincidences(_pair_labels(r), 3).sum(axis=0)) for r in shared])
    scale = np.arange(3.0)
    value = alpha_of_coincidences(matrices.sum(axis=0), "nominal", scale)
    counts = resample_counts(len(shared), num_samples, seed=0)
    sums = np.tensordot(counts, matrices, axes=1)
    samples = np.array([alpha_of_coincidences(m, "nominal", scale) for m in sums])
    return percentile_interval(value, samples, len(shared))


def _mirrored(matrix: np.ndarray) -> np.ndarray:
    # Which response of a couple is called first is arbitrary: count both ways, so that it cannot matter.
    return (matrix + matrix[::-1, ::-1]) / 2


def _kappa(
    items: dict[str, list[JudgmentRecord]], num_samples: int = 400
) -> tuple[dict[tuple[str, str], tuple[float, int]], dict[tuple[str, str], Interval]]:
    """Cohen's kappa per couple of handles with the number of pair labels, and its interval by item."""
    tables: dict[tuple[str, str], list[np.ndarray]] = {}
    for records in items.values():
        ordered = sorted(records, key=lambda r: r.handle)
        for i, j in combinations(range(len(ordered)), 2):
            rows = _pair_labels([ordered[i], ordered[j]])
            table = np.zeros((3, 3))
            np.add.at(table, (rows[0], rows[1]), 1.0)
            tables.setdefault((ordered[i].handle, ordered[j].handle), []).append(2 * _mirrored(table))
    values, intervals = {}, {}
    for couple, found in tables.items():
        stack = np.stack(found)
        value = _kappa_of(stack.sum(axis=0)[None])[0]
        values[couple] = (float(value), round(float(stack.sum()) / 2))
        counts = resample_counts(len(found), num_samples, seed=0)
        intervals[couple] = percentile_interval(
            float(value), _kappa_of(np.tensordot(counts, stack, axes=1)), len(found)
        )
    return values, intervals


def _kappa_of(tables: np.ndarray) -> np.ndarray:
    """Cohen's kappa of confusion tables (sample, 3, 3); NaN where chance leaves no room."""
    total = tables.sum(axis=(1, 2))
    seen = np.trace(tables, axis1=1, axis2=2) / total
    chance = (tables.sum(axis=1) * tables.sum(axis=2)).sum(axis=1) / total**2
    return np.divide(seen - chance, 1 - chance, out=np.full(total.shape, math.nan), where=chance < 1 - 1e-12)


def _first_slot(records: Sequence[JudgmentRecord]) -> tuple[Interval, float, float]:
    single = [r for r in records if len(r.tiers[0]) == 1]
    hits = sum(r.tiers[0][0] == r.shown[0] for r in single)
    expected = float(np.mean([1 / len(r.shown) for r in single])) if single else math.nan
    p = binomial_test(hits, len(single), expected) if single else 1.0
    return wilson_interval(hits, len(single)), expected, p


def _longer(items: dict[str, list[JudgmentRecord]], texts: dict[str, str]) -> Interval:
    rows = []
    for records in items.values():
        pairs = [p for r in records for p in strict_pairs(r.tiers) if len(texts[p[0]]) != len(texts[p[1]])]
        rows.append((sum(len(texts[a]) > len(texts[b]) for a, b in pairs), len(pairs)))
    return _ratio([(float(a), float(b)) for a, b in rows])


def _seconds(records: Sequence[JudgmentRecord]) -> float:
    times = [r.active_ms if r.active_ms is not None else r.wall_ms for r in records]
    known = [t for t in times if t > 0]
    return float(np.median(known)) / 1000 if known else math.nan


def _gold(records: Sequence[JudgmentRecord], gold: dict[str, Tiers]) -> Interval:
    asked = [r for r in records if r.item_id in gold]
    right = 0
    for record in asked:
        places = place(record.tiers)
        right += all(places[a] < places[b] for a, b in strict_pairs(gold[record.item_id]))
    return wilson_interval(right, len(asked))


def _consistency(records: Sequence[JudgmentRecord], by_lease: dict[str, JudgmentRecord]) -> Interval:
    rows = []
    for record in records:
        source = by_lease.get(record.repeat_of_lease_id or "")
        if source is not None:
            rows.append((pair_agreement(record.tiers, source.tiers), 1.0))
    return _ratio(rows)


def _model(records: Sequence[JudgmentRecord], texts: dict[str, str], raters: dict[str, int]) -> RaterModel:
    names = sorted({n for r in records for n in r.shown})
    index = {n: i for i, n in enumerate(names)}
    rows = []
    for record in records:
        size = len(record.shown)
        places = place(record.tiers)
        slot = {n: k / (size - 1) for k, n in enumerate(record.shown)}
        for a, b in combinations(record.shown, 2):
            length = math.log1p(len(texts[a])) - math.log1p(len(texts[b]))
            # K - 1 free choices stand behind the K (K - 1) / 2 couples of a ranking.
            rows.append((raters[record.annotator_id], index[a], index[b], preference(places, a, b),
                         slot[b] - slot[a], length, 2 / size))  # fmt: skip
    return fit_rater_model(comparisons_of(rows), len(raters), len(names))


def _with_others(items: dict[str, list[JudgmentRecord]], annotator_id: str) -> float:
    scores = []
    for records in items.values():
        own = [r for r in records if r.annotator_id == annotator_id]
        scores += [pair_agreement(a.tiers, b.tiers) for a in own for b in records if b.annotator_id != annotator_id]
    return float(np.mean(scores)) if scores else math.nan


def _alpha_axes(ratings: Ratings) -> dict[str, float]:
    """``{(item, axis): {response: {rater: value}}}`` to ordinal alpha per axis."""
    result = {}
    for axis in sorted({a for _, a in ratings}):
        cells = [c for (_, a), responses in ratings.items() if a == axis for c in responses.values()]
        raters = sorted({r for cell in cells for r in cell})
        table = [[float(cell[r]) if r in cell else math.nan for cell in cells] for r in raters]
        result[axis] = krippendorff_alpha(table, "ordinal")
    return result


def project_report(
    snapshot: Snapshot, gold: dict[str, Tiers] | None = None, ratings: Ratings | None = None
) -> ProjectReport:
    """Compute every figure.

    Args:
        gold: expected tiers per gold item id.
        ratings: ``{(item id, axis): {response id: {annotator id: value}}}``.
    """
    gold = gold or {}
    records = snapshot.of_kind("normal")
    items = _items(records)
    people = {r.annotator_id: r.handle for r in snapshot.judgments}
    index = {a: k for k, a in enumerate(sorted(people, key=lambda a: people[a]))}
    model = _model(records, snapshot.texts, index)
    weights = model.reliability()
    by_lease = {r.lease_id: r for r in snapshot.judgments}
    shared = _first_votes(items, snapshot.project.settings)
    agreement, tau = _agreement(shared)
    kappa, kappa_intervals = _kappa(shared)
    first, expected, p = _first_slot(records)
    couples = [math.comb(len(r.shown), 2) for r in records]
    strict = [len(strict_pairs(r.tiers)) for r in records]
    raters = []
    for annotator_id, k in index.items():
        own = [r for r in snapshot.judgments if r.annotator_id == annotator_id]
        raters.append(RaterReport(
            annotator_id=annotator_id, handle=people[annotator_id], votes=len(own), median_seconds=_seconds(own),
            agreement_with_others=_with_others(items, annotator_id), gold_accuracy=_gold(own, gold),
            self_consistency=_consistency(own, by_lease), first_slot_share=_first_slot(own)[0].value,
            beta=float(model.beta[k]), beta_error=float(model.beta_error[k]),
            reliability=float(weights[k])))  # fmt: skip
    topics: dict[str, int] = {}
    for record in records:
        topics[record.topic or "(none)"] = topics.get(record.topic or "(none)", 0) + 1
    return ProjectReport(
        project=snapshot.project.name, votes=len(snapshot.judgments), items=len(items), pair_agreement=agreement,
        kendall_tau=tau, alpha_pairs=_alpha_pairs(shared), alpha_axes=_alpha_axes(ratings or {}), kappa=kappa,
        kappa_intervals=kappa_intervals,
        tie_share=1 - sum(strict) / sum(couples) if couples else math.nan,
        all_bad_share=float(np.mean([r.all_bad for r in records])) if records else math.nan,
        first_slot=first, first_slot_expected=expected, first_slot_p=p,
        longer_preferred=_longer(items, snapshot.texts), median_seconds=_seconds(records),
        gold_accuracy=_gold(snapshot.judgments, gold), self_consistency=_consistency(snapshot.judgments, by_lease),
        reward_model_ceiling=implied_accuracy(agreement.value), position_bias=model.position_bias,
        length_bias=model.length_bias, raters=raters, topics=dict(sorted(topics.items())))  # fmt: skip
