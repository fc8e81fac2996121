"""What the report takes of a project that is too large to take everything."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from datetime import UTC, datetime
from itertools import combinations

import numpy as np
import pytest

from preference_ui.export import JudgmentRecord
from preference_ui.ids import sha256_text
from preference_ui.ranking import pair_agreement
from preference_ui.statistics import kendall_tau_b, krippendorff_alpha
from preference_ui.statistics.between import agreement_of, kappa_by_couple, votes_by_item
from preference_ui.statistics.report import (
    KAPPA_RATERS,
    MODEL_COUPLES,
    MODEL_COUPLES_MOST,
    MODEL_COUPLES_PER_RATER,
    _alpha_units,
    _modelled,
)


def _records(num_prompts: int, raters: list[str]) -> list[JudgmentRecord]:
    """Two votes on four responses per prompt; the last rater votes once in a hundred prompts."""
    rng = random.Random(0)
    records = []
    for prompt in range(num_prompts):
        names = tuple(f"{prompt}.{n}" for n in range(4))
        crew = rng.sample(raters[:-1], 2)
        if prompt % 100 == 0:
            crew[0] = raters[-1]
        for rater in crew:
            number = len(records)
            records.append(JudgmentRecord(
                judgment_id=f"j{number}", lease_id=f"l{number}", item_id=f"i{prompt}", kind="normal",
                repeat_of_lease_id=None, annotator_id=rater, handle=rater, prompt_sha256=sha256_text(str(prompt)),
                topic="", tiers=tuple((name,) for name in names), shown=names, margin=0.0, strength=None, all_bad=False,
                rationale="", active_ms=1, wall_ms=1, guideline_version=1, revision=1,
                created=datetime(2026, 1, 1, tzinfo=UTC), answered=datetime(2026, 1, 1, tzinfo=UTC), first_event=number,
            ))  # fmt: skip
    return records


def test_the_rater_model_takes_enough_of_every_rater_and_no_more() -> None:
    raters = [f"r{n}" for n in range(12)]
    records = _records(20_000, raters)
    taken = _modelled(records, len(raters))
    couples = Counter(record.annotator_id for record in taken for _ in range(6))
    rare = sum(record.annotator_id == raters[-1] for record in records) * 6
    enough = MODEL_COUPLES // len(raters)
    assert couples[raters[-1]] == rare < enough, "who voted seldom is taken whole"
    assert min(couples[rater] for rater in raters[:-1]) >= enough > MODEL_COUPLES_PER_RATER
    assert sum(couples.values()) < 2 * MODEL_COUPLES < len(records) * 6
    assert [r.first_event for r in taken] == sorted(r.first_event for r in taken)
    assert Counter(r.item_id for r in taken).keys() == {
        i for i, n in Counter(r.item_id for r in taken).items() if n == 2
    }
    small = records[: MODEL_COUPLES // 6]
    assert _modelled(small, len(raters)) is small


def test_a_crowd_of_raters_does_not_make_the_model_larger() -> None:
    """Of 400 raters, all but one get an equal part of what the model takes; the one who voted seldom has a place."""
    raters = [f"r{n}" for n in range(400)]
    taken = _modelled(_records(40_000, raters), len(raters))
    couples = Counter(record.annotator_id for record in taken for _ in range(6))
    assert couples.total() < MODEL_COUPLES_MOST + 400 * 12 < len(raters) * MODEL_COUPLES_PER_RATER
    assert len(couples) == len(raters) and min(couples.values()) >= 6


def _shuffled(records: list[JudgmentRecord]) -> list[JudgmentRecord]:
    """The same with tiers at random, ties among them."""
    rng = random.Random(1)
    changed = []
    for record in records:
        names = rng.sample(record.shown, 4)
        cuts = sorted(rng.sample(range(1, 4), rng.randrange(4)))
        tiers = tuple(tuple(names[a:b]) for a, b in zip([0, *cuts], [*cuts, 4], strict=True))
        changed.append(dataclasses.replace(record, tiers=tiers))
    return changed


def test_agreement_by_patterns_is_agreement_vote_by_vote() -> None:
    raters = [f"r{n}" for n in range(14)]
    records = _shuffled(_records(300, raters))
    items = votes_by_item(records)
    agreement, tau, alpha = agreement_of(items)
    couples = [[vote.record.tiers for vote in votes] for votes in items.values()]
    assert agreement.value == pytest.approx(np.mean([pair_agreement(*tiers) for tiers in couples]))
    taus = [kendall_tau_b(*(vote.places for vote in votes)) for votes in items.values()]
    assert tau.value == pytest.approx(np.nanmean(taus))
    labels = np.array([[1 + (a < b) - (a > b) for votes in items.values() for a, b in combinations(votes[k].places, 2)]
                       for k in range(2)])  # fmt: skip
    # Either response of a couple may be called the first: both ways are counted.
    both = np.concatenate([labels, 2 - labels], axis=1)
    expected = krippendorff_alpha(both, "nominal")
    assert alpha.value == pytest.approx(expected, abs=2 / both.shape[1])
    assert agreement.num_units == tau.num_units == alpha.num_units == 300


def test_intervals_of_kappa_are_for_those_who_are_shown() -> None:
    raters = [f"r{n}" for n in range(14)]
    items = votes_by_item(_shuffled(_records(300, raters)))
    shown = set(raters[:KAPPA_RATERS])
    values, intervals = kappa_by_couple(items, shown)
    assert len(values) > 45
    assert intervals.keys() == {couple for couple in values if shown.issuperset(couple)}
    assert all(found.low <= values[couple][0] <= found.high for couple, found in intervals.items())


def test_alpha_of_ratings_in_parts_is_alpha_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preference_ui.statistics.report._UNITS_AT_ONCE", 7)
    rng = np.random.default_rng(0)
    table = np.where(rng.random((4, 60)) < 0.4, np.nan, rng.integers(1, 6, (4, 60)) + rng.integers(0, 2, 60))
    units = [[int(v) for v in column[~np.isnan(column)]] for column in table.T]
    got = _alpha_units([values for values in units if values])
    assert got == pytest.approx(krippendorff_alpha(table, "ordinal"), abs=1e-12)
