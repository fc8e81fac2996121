"""The quality report of a project, from its judgments."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from preference_ui.export import JudgmentRecord, Snapshot
from preference_ui.ranking import Tiers, follows_key, pair_agreement, place, preference
from preference_ui.statistics.agreement import (
    alpha_of_coincidences,
    coincidences,
    implied_accuracy,
)
from preference_ui.statistics.between import (
    Items,
    agreement_of,
    agreement_with_others,
    first_votes,
    kappa_by_couple,
    ratio_of,
    votes_by_item,
)
from preference_ui.statistics.bradley_terry import RaterModel, comparisons_of, fit_rater_model
from preference_ui.statistics.intervals import (
    Interval,
    binomial_test,
    wilson_interval,
)

_UNITS_AT_ONCE = 10_000
# The rater model takes so many couples of responses (10 000 votes on four), more where there are many raters, and above
# the last number only those of raters who have none yet.
MODEL_COUPLES, MODEL_COUPLES_PER_RATER, MODEL_COUPLES_MOST = 60_000, 600, 120_000
# Intervals of kappa for the couples of so many raters, those with the most votes: what a picture has room for.
KAPPA_RATERS = 10


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
        kappa_intervals: a bootstrap interval by item for couples of the ``KAPPA_RATERS`` raters with the most votes.
        first_slot: share of votes given here that put the response shown first alone on top;
            ``first_slot_expected`` is the share without position bias, ``first_slot_p`` the chance of one as extreme.
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


def _first_slot(records: Sequence[JudgmentRecord]) -> tuple[Interval, float, float]:
    single = [r for r in records if len(r.tiers[0]) == 1 and not r.imported]
    hits = sum(r.tiers[0][0] == r.shown[0] for r in single)
    expected = float(np.mean([1 / len(r.shown) for r in single])) if single else math.nan
    p = binomial_test(hits, len(single), expected) if single else 1.0
    return wilson_interval(hits, len(single)), expected, p


def _longer(items: Items, lengths: dict[str, int]) -> Interval:
    rows = []
    for votes in items.values():
        won = total = 0
        for vote in votes:
            tiers = [[lengths[name] for name in tier] for tier in vote.record.tiers]
            for high, low in combinations(tiers, 2):
                for a in high:
                    for b in low:
                        won += a > b
                        total += a != b
        rows.append((float(won), float(total)))
    return ratio_of(rows)


def _seconds(records: Sequence[JudgmentRecord]) -> float:
    times = [r.active_ms if r.active_ms is not None else r.wall_ms for r in records]
    known = [t for t in times if t > 0]
    return float(np.median(known)) / 1000 if known else math.nan


def _gold(records: Sequence[JudgmentRecord], gold: dict[str, Tiers]) -> Interval:
    asked = [r for r in records if r.item_id in gold]
    right = sum(follows_key(record.tiers, gold[record.item_id]) for record in asked)
    return wilson_interval(right, len(asked))


def _consistency(records: Sequence[JudgmentRecord], by_lease: dict[str, JudgmentRecord]) -> Interval:
    rows = []
    for record in records:
        source = by_lease.get(record.repeat_of_lease_id or "")
        if source is not None:
            rows.append((pair_agreement(record.tiers, source.tiers), 1.0))
    return ratio_of(rows)


def _modelled(records: Sequence[JudgmentRecord], num_raters: int) -> Sequence[JudgmentRecord]:
    """Votes for the rater model: all, or of large projects whole prompts until every rater has enough or no more.

    The model's memory and time grow with the votes, and a rater's figure is sharp long before. Prompts come in the
    order of their digests, so equal votes give equal figures.
    """
    couples = [math.comb(len(record.shown), 2) for record in records]
    if sum(couples) <= MODEL_COUPLES:
        return records
    enough = max(MODEL_COUPLES // num_raters, MODEL_COUPLES_PER_RATER)
    prompts: dict[str, Counter[str]] = {}
    for record, count in zip(records, couples, strict=True):
        prompts.setdefault(record.prompt_sha256, Counter())[record.annotator_id] += count
    taken: Counter[str] = Counter()
    total, chosen = 0, set()
    for prompt in sorted(prompts):
        limit = enough if total < MODEL_COUPLES_MOST else 1
        if any(taken[rater] < limit for rater in prompts[prompt]):
            chosen.add(prompt)
            taken.update(prompts[prompt])
            total += prompts[prompt].total()
    return [record for record in records if record.prompt_sha256 in chosen]


def _model(records: Sequence[JudgmentRecord], lengths: dict[str, int], raters: dict[str, int]) -> RaterModel:
    names = sorted({n for r in records for n in r.shown})
    index = {n: i for i, n in enumerate(names)}
    rows = []
    for record in records:
        size = len(record.shown)
        places = place(record.tiers)
        # Without places where none were seen: the position term must not learn from them.
        slot = {n: 0.0 if record.imported else k / (size - 1) for k, n in enumerate(record.shown)}
        for a, b in combinations(record.shown, 2):
            length = math.log1p(lengths[a]) - math.log1p(lengths[b])
            # K - 1 free choices stand behind the K (K - 1) / 2 couples of a ranking.
            rows.append((raters[record.annotator_id], index[a], index[b], preference(places, a, b),
                         slot[b] - slot[a], length, 2 / size))  # fmt: skip
    return fit_rater_model(comparisons_of(rows), len(raters), len(names))


def _alpha_axes(items: Items) -> dict[str, float]:
    """Ordinal alpha per rating axis; a unit is one response of one item."""
    units: dict[str, dict[tuple[str, str], list[int]]] = {}
    for item_id, votes in items.items():
        for vote in votes:
            for response, axis, value in vote.record.ratings:
                units.setdefault(axis, {}).setdefault((item_id, response), []).append(value)
    return {axis: _alpha_units(list(units[axis].values())) for axis in sorted(units)}


def _alpha_units(units: list[list[int]]) -> float:
    """Krippendorff's ordinal alpha of the values that each unit was given; who gave them does not matter to it."""
    scale = np.unique(np.concatenate([np.array(values) for values in units]))
    total = np.zeros((scale.size, scale.size))
    for start in range(0, len(units), _UNITS_AT_ONCE):
        chunk = units[start : start + _UNITS_AT_ONCE]
        codes = np.full((max(map(len, chunk)), len(chunk)), -1)
        for unit, values in enumerate(chunk):
            codes[: len(values), unit] = np.searchsorted(scale, values)
        total += coincidences(codes, scale.size).sum(axis=0)
    return alpha_of_coincidences(total, "ordinal", scale.astype(float))


def project_report(snapshot: Snapshot, gold: dict[str, Tiers] | None = None) -> ProjectReport:
    """Compute every figure. Votes on retired items count as work (votes, seconds) and are in no other figure.

    Args:
        snapshot: with texts or without.
        gold: expected tiers per gold item id.
    """
    gold = gold or {}
    kept = snapshot.without_retired()
    records = kept.of_kind("normal")
    items = votes_by_item(records)
    people = {r.annotator_id: r.handle for r in snapshot.judgments}
    index = {a: k for k, a in enumerate(sorted(people, key=lambda a: people[a]))}
    model = _model(_modelled(records, len(index)), snapshot.lengths, index)
    weights = model.reliability()
    by_lease = {r.lease_id: r for r in kept.judgments}
    shared = first_votes(items, snapshot.extended)
    agreement, tau, alpha = agreement_of(shared)
    first, expected, p = _first_slot(records)
    couples = [math.comb(len(r.shown), 2) for r in records]
    tied = [sum(math.comb(len(t), 2) for t in r.tiers) for r in records if len(r.tiers) < len(r.shown)]
    raters = []
    with_others = agreement_with_others(items)
    by_rater: dict[str, list[JudgmentRecord]] = {}
    for judgment in snapshot.judgments:
        by_rater.setdefault(judgment.annotator_id, []).append(judgment)
    condemned = snapshot.retired_items()
    most = sorted(by_rater.values(), key=lambda own: (-len(own), own[0].handle))[:KAPPA_RATERS]
    kappa, kappa_intervals = kappa_by_couple(shared, {own[0].handle for own in most})
    for annotator_id, k in index.items():
        work = by_rater[annotator_id]
        own = [r for r in work if r.item_id not in condemned]
        raters.append(RaterReport(
            annotator_id=annotator_id, handle=people[annotator_id], votes=len(work), median_seconds=_seconds(work),
            agreement_with_others=with_others.get(annotator_id, math.nan), gold_accuracy=_gold(own, gold),
            self_consistency=_consistency(own, by_lease), first_slot_share=_first_slot(own)[0].value,
            beta=float(model.beta[k]), beta_error=float(model.beta_error[k]),
            reliability=float(weights[k])))  # fmt: skip
    topics: dict[str, int] = {}
    for record in records:
        topics[record.topic or "(none)"] = topics.get(record.topic or "(none)", 0) + 1
    return ProjectReport(
        project=snapshot.project.name, votes=len(snapshot.judgments), items=len(items), pair_agreement=agreement,
        kendall_tau=tau, alpha_pairs=alpha, alpha_axes=_alpha_axes(shared), kappa=kappa,
        kappa_intervals=kappa_intervals,
        tie_share=sum(tied) / sum(couples) if couples else math.nan,
        all_bad_share=float(np.mean([r.all_bad for r in records])) if records else math.nan,
        first_slot=first, first_slot_expected=expected, first_slot_p=p,
        longer_preferred=_longer(items, snapshot.lengths), median_seconds=_seconds(records),
        gold_accuracy=_gold(kept.judgments, gold), self_consistency=_consistency(kept.judgments, by_lease),
        reward_model_ceiling=implied_accuracy(agreement.value), position_bias=model.position_bias,
        length_bias=model.length_bias, raters=raters, topics=dict(sorted(topics.items())))  # fmt: skip
