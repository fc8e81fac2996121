"""Agreement between raters beyond chance."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

Level = Literal["nominal", "ordinal", "interval"]


def kendall_tau_b(first: ArrayLike, second: ArrayLike) -> float:
    """Rank correlation with ties (Kendall 1945); NaN when either side is all tied."""
    a, b = np.asarray(first, float), np.asarray(second, float)
    upper = np.triu_indices(a.size, k=1)
    da = np.sign(a[:, None] - a[None, :])[upper]
    db = np.sign(b[:, None] - b[None, :])[upper]
    scale = math.sqrt(float((da != 0).sum()) * float((db != 0).sum()))
    return float((da * db).sum() / scale) if scale else math.nan


def coincidences(values: np.ndarray, num_values: int) -> np.ndarray:
    """Coincidence matrix of each unit.

    Args:
        values: (rater, unit) codes 0..num_values-1, -1 where missing.

    Returns:
        (unit, value, value): ordered pairs of codes of different raters over (raters of the unit - 1).
    """
    counts = np.stack([(values == v).sum(axis=0) for v in range(num_values)], axis=1).astype(float)
    raters = counts.sum(axis=1)
    pairs = counts[:, :, None] * counts[:, None, :]
    index = np.arange(num_values)
    pairs[:, index, index] -= counts
    usable = raters > 1
    pairs[usable] /= (raters[usable] - 1)[:, None, None]
    pairs[~usable] = 0.0
    return pairs


def _distances(totals: np.ndarray, level: Level, scale: np.ndarray) -> np.ndarray:
    size = totals.size
    if level == "nominal":
        return 1.0 - np.eye(size)
    if level == "interval":
        return (scale[:, None] - scale[None, :]) ** 2
    # Ordinal: mass between the two values, half of either end (Krippendorff 2011).
    middle = np.cumsum(totals) - totals / 2
    return (middle[:, None] - middle[None, :]) ** 2


def alpha_of_coincidences(matrix: np.ndarray, level: Level, scale: np.ndarray) -> float:
    """Krippendorff's alpha of a summed coincidence matrix; NaN when there is nothing to disagree on."""
    totals = matrix.sum(axis=0)
    number = totals.sum()
    if number < 2:
        return math.nan
    distance = _distances(totals, level, scale)
    expected = float((np.outer(totals, totals) * distance).sum() / (number - 1))
    observed = float((matrix * distance).sum())
    return 1 - observed / expected if expected > 0 else math.nan


def krippendorff_alpha(ratings: ArrayLike, level: Level = "nominal") -> float:
    """Krippendorff's alpha (2011 edition of "Computing Krippendorff's Alpha-Reliability").

    Args:
        ratings: (rater, unit) numbers, NaN where a rater did not see a unit.

    Returns:
        1 for perfect agreement, 0 for chance, below 0 for systematic disagreement; NaN without variation.
    """
    table = np.asarray(ratings, float)
    known = ~np.isnan(table)
    scale = np.unique(table[known])
    codes = np.where(known, np.searchsorted(scale, np.where(known, table, scale[0] if scale.size else 0)), -1)
    return alpha_of_coincidences(coincidences(codes, scale.size).sum(axis=0), level, scale)


def cohen_kappa(first: ArrayLike, second: ArrayLike, weights: Literal["none", "linear", "quadratic"] = "none") -> float:
    """Cohen's kappa of two raters on the same units, optionally weighted by distance (Cohen 1960, 1968).

    Weights use the values themselves as positions. NaN when both raters always give one and the same value.
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    scale = np.unique(np.concatenate([a, b]))
    ia, ib = np.searchsorted(scale, a), np.searchsorted(scale, b)
    table = np.zeros((scale.size, scale.size))
    np.add.at(table, (ia, ib), 1.0)
    gap = np.abs(scale[:, None] - scale[None, :])
    cost = {"none": (gap > 0).astype(float), "linear": gap, "quadratic": gap**2}[weights]
    chance = np.outer(table.sum(axis=1), table.sum(axis=0)) / max(1.0, table.sum())
    expected = float((chance * cost).sum())
    return 1 - float((table * cost).sum()) / expected if expected > 0 else math.nan


def implied_accuracy(agreement: float) -> float:
    """Share of right votes of two equally good, independent raters who agree this often.

    Agreement ``a`` on a binary choice means ``a = p^2 + (1 - p)^2``. The result is what a reward model that is
    always right would score against single votes; a model above it has seen the answers.
    """
    if math.isnan(agreement):
        return math.nan
    return (1 + math.sqrt(max(0.0, 2 * agreement - 1))) / 2
