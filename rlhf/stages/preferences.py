"""Preference rows from files or from the preference store."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from typing import Any

from rlhf.config.sources import STORE_PREFIX, Mixed, is_of_store
from rlhf.config.stages import DataConfig
from rlhf.data.loading import Keys, load_preferences
from rlhf.data.schema import PreferenceRow
from rlhf.errors import ConfigError, DataError
from rlhf.stages.quality import report_quality
from rlhf.stages.sources import Part, read_mixed, whole_of


def read_preferences(
    data: DataConfig,
    spec: Mixed,
    run_dir: Path,
    *,
    limit: int | None = None,
    dropped: str = "dropped.jsonl",
    annotator_weights: bool = False,
) -> list[PreferenceRow]:
    """Reads ``store:PROJECT[@vN]``, or files and globs; what is odd about files goes to ``data_quality.txt``.

    Args:
        spec: ``data.train`` or ``data.evaluation``.
        limit: at most this many rows.
        dropped: where in ``run_dir`` rows that do not fit are written when ``data.on_bad_row=drop``.
        annotator_weights: weigh votes by the estimated reliability of their annotators (live store votes only).

    Raises:
        DataError: rows do not fit, or the store holds no such project, version or votes.
    """
    whole = whole_of(spec, data.format, limit, dropped, Keys("data.format", "data.on_bad_row"))
    told = dropped.replace("dropped", "data_quality").replace(".jsonl", ".txt")
    return read_mixed(
        spec,
        whole,
        "data.train",
        lambda part: _read(data, part, run_dir, annotator_weights),
        lambda rows: report_quality(rows, run_dir, told),
    )


def _read(data: DataConfig, part: Part, run_dir: Path, annotator_weights: bool) -> list[PreferenceRow]:
    spec, limit = part.files, part.limit
    if not (isinstance(spec, str) and is_of_store(spec)):
        return load_preferences(
            spec,
            format=part.format,
            on_bad_row=data.on_bad_row,
            dropped_path=run_dir / part.dropped,
            limit=limit,
            keys=part.keys,
        )
    from preference_ui.versions import load_preferences as load_from_store

    rows = load_from_store(spec, options=_weighted_options(spec) if annotator_weights else None)
    return rows if limit is None else rows[:limit]


def _weighted_options(spec: str) -> Any:
    """How to count votes so that each annotator weighs by an estimated reliability (see the store's statistics)."""
    from preference_ui.db import open_store
    from preference_ui.export import read_snapshot
    from preference_ui.ranking import PairOptions, place, preference
    from preference_ui.statistics.bradley_terry import comparisons_of, fit_rater_model

    where, _, name = spec.removeprefix(STORE_PREFIX).rpartition("#")
    if "@" in name:
        raise ConfigError(
            f"annotator_weights counts live votes anew, but {spec} is a frozen version: leave out the @v part, or "
            "freeze a version with these weights and set annotator_weights=false"
        )
    store = open_store(where or None, create=False)
    try:
        with store.read() as session:
            snapshot = read_snapshot(session, name).without_retired()
    finally:
        store.close()
    raters: dict[str, int] = {}
    responses: dict[str, int] = {}
    rows = []
    for record in snapshot.of_kind("normal"):
        places, rater = place(record.tiers), raters.setdefault(record.annotator_id, len(raters))
        shown = [response for response in record.shown if response in places]
        couples = list(combinations(shown, 2))
        for first, second in couples:
            gap = 0.0 if record.imported else (shown.index(second) - shown.index(first)) / max(1, len(shown) - 1)
            length = math.log(len(snapshot.texts[first]) + 1) - math.log(len(snapshot.texts[second]) + 1)
            pair = [responses.setdefault(response, len(responses)) for response in (first, second)]
            weight = (len(shown) - 1) / len(couples)
            rows.append((rater, pair[0], pair[1], preference(places, first, second), gap, length, weight))
    if not rows:
        raise DataError(f"{spec}: no votes yet, so no annotator can be weighed")
    found = fit_rater_model(comparisons_of(rows), len(raters), len(responses)).reliability()
    return PairOptions(reliability={name: float(found[index]) for name, index in raters.items()})
