"""What the report takes of a project that is too large to take everything."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime

import numpy as np
import pytest

from preference_ui.export import JudgmentRecord
from preference_ui.ids import sha256_text
from preference_ui.statistics import krippendorff_alpha
from preference_ui.statistics.report import (
    MODEL_COUPLES,
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


def test_alpha_of_ratings_in_parts_is_alpha_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preference_ui.statistics.report._UNITS_AT_ONCE", 7)
    rng = np.random.default_rng(0)
    table = np.where(rng.random((4, 60)) < 0.4, np.nan, rng.integers(1, 6, (4, 60)) + rng.integers(0, 2, 60))
    units = [[int(v) for v in column[~np.isnan(column)]] for column in table.T]
    got = _alpha_units([values for values in units if values])
    assert got == pytest.approx(krippendorff_alpha(table, "ordinal"), abs=1e-12)
