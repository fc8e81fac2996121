"""Bounds on rounding: whose precision they follow, what a config's value means, and what is told."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rlhf.config.same import asks_for_the_same
from rlhf.errors import NumericsError
from rlhf.stages.agreement import ROUNDING, Agreement, Bounds, refuse_ratio
from tests.support.ppo import tiny_config

IN_FLOAT32, IN_BFLOAT16 = {"dtype": "float32"}, {"dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("trainer", "workers", "sync", "own"),
    [
        (IN_FLOAT32, [IN_FLOAT32], "float32", "float32"),
        (IN_BFLOAT16, [IN_BFLOAT16], "bfloat16", "bfloat16"),
        (IN_BFLOAT16, [IN_FLOAT32, IN_FLOAT32], "bfloat16", "bfloat16"),  # dtype=auto, rollouts on CPUs
        (IN_FLOAT32, [IN_FLOAT32, IN_BFLOAT16], "bfloat16", "float32"),
    ],
)
def test_the_coarsest_of_both_sides_tells(
    trainer: dict[str, str], workers: list[dict[str, str]], sync: str, own: str, tmp_path: Path
) -> None:
    found = Agreement.of(tiny_config(tmp_path, tmp_path / "run"), trainer, workers)
    assert (found.sync.most, found.sync.mean) == ROUNDING[sync]
    assert (found.reference.most, found.reference.mean) == (found.ratio.most, found.ratio.mean) == ROUNDING[own]


@pytest.mark.parametrize("recorded", [1e-4, 0.05])
def test_a_run_that_was_begun_with_another_tolerance_is_the_same_run(recorded: float, tmp_path: Path) -> None:
    """An earlier release wrote its default down, and shipped configs had one of their own."""
    config = tiny_config(tmp_path, tmp_path / "run")
    described = config.model_dump(mode="json") | {"sync_tolerance": recorded, "ratio_tolerance": recorded}
    assert asks_for_the_same(described, config)


def test_a_value_is_of_the_largest_alone(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path / "run", sync_tolerance=0.3, ratio_tolerance=0.4)
    found = Agreement.of(config, IN_BFLOAT16, [IN_BFLOAT16])
    assert found.sync.hold(0.3, 0.3) and not found.sync.hold(0.31, 0.0)
    assert found.ratio.hold(0.4, 0.4) and not found.ratio.hold(0.41, 0.0)


def test_in_bfloat16_the_mean_has_a_bound_of_its_own() -> None:
    most, mean = ROUNDING["bfloat16"]
    found = Bounds.of("sync_tolerance", None, "bfloat16")
    assert mean is not None and found.hold(most, mean)
    assert not found.hold(most, 1.01 * mean) and not found.hold(1.01 * most, mean)


@pytest.mark.parametrize(("most", "mean"), [(math.nan, 0.0), (0.0, math.nan)])
def test_what_is_no_number_is_refused(most: float, mean: float) -> None:
    assert not Bounds.of("sync_tolerance", None, "bfloat16").hold(most, mean)


@pytest.mark.parametrize(
    ("value", "dtype", "told"),
    [
        (None, "float32", r"ratio_tolerance left out is 0\.0001 in model\.dtype=float32"),
        (None, "bfloat16", r"is 2 at most and 0\.2 on average in model\.dtype=bfloat16.*set ratio_tolerance higher"),
        (0.02, "bfloat16", r"ratio_tolerance=0\.02; if it is rounding in model\.dtype=bfloat16, leave ratio_tolerance"),
        (2.5, "bfloat16", r"\(ratio_tolerance=2\.5\)"),
    ],
)
def test_the_message_names_key_and_precision(value: float | None, dtype: str, told: str) -> None:
    learned = {"ratio_first": 3.0, "ratio_first_mean": 0.5, "updates_skipped": 0}
    with pytest.raises(NumericsError, match=told):
        refuse_ratio(Bounds.of("ratio_tolerance", value, dtype), 0, learned)
    refuse_ratio(Bounds.of("ratio_tolerance", value, dtype), 0, {**learned, "updates_skipped": 1})
