"""Intervals and tests for shares."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

Z_95 = 1.959963984540054
# Units of a bootstrap sample: 1000 samples of them are 16 MB.
MAX_UNITS = 2000


@dataclass(frozen=True)
class Interval:
    """An estimate with a 95 % interval and the number of units behind it."""

    value: float
    low: float
    high: float
    num_units: int


def wilson_interval(successes: float, trials: int, z: float = Z_95) -> Interval:
    """Score interval of a share (Wilson 1927): sound for few trials and near 0 and 1."""
    if trials == 0:
        return Interval(math.nan, 0.0, 1.0, 0)
    share = successes / trials
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), trials)


def binomial_test(successes: int, trials: int, probability: float) -> float:
    """Exact two-sided p-value: total chance of outcomes no likelier than the one seen."""
    if trials == 0:
        return 1.0
    if probability in (0.0, 1.0):
        return 1.0 if successes == trials * probability else 0.0
    counts = np.arange(trials + 1)
    factorials = np.array([math.lgamma(k + 1.0) for k in range(trials + 1)])
    log_pmf = (
        factorials[-1]
        - factorials
        - factorials[::-1]
        + counts * math.log(probability)
        + (trials - counts) * math.log1p(-probability)
    )
    # The tolerance keeps the mirrored outcome of a symmetric case in.
    return float(min(1.0, np.exp(log_pmf[log_pmf <= log_pmf[successes] + 1e-7]).sum()))


def resampled_sums(values: np.ndarray, num_samples: int, seed: int) -> np.ndarray:
    """Sums over bootstrap samples of units: (unit, ...) to (num_samples, ...).

    More units than ``MAX_UNITS`` are first added up to so many groups, put together at random, and groups are drawn in
    their place. A sum over a group varies as the sum over its members does, so the spread stays the same (its own
    error is 1 / sqrt(2 MAX_UNITS), 2 %), while memory and time no longer grow with the number of units.
    """
    rng = np.random.default_rng(seed)
    if len(values) > MAX_UNITS:
        starts = np.arange(MAX_UNITS) * len(values) // MAX_UNITS
        values = np.add.reduceat(values[rng.permutation(len(values))], starts, axis=0)
    counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=num_samples)
    return np.tensordot(counts, values, axes=1)


def percentile_interval(value: float, samples: np.ndarray, num_units: int) -> Interval:
    """Interval from bootstrap samples, those without a value left out."""
    finite = samples[np.isfinite(samples)]
    if finite.size == 0:
        return Interval(value, math.nan, math.nan, num_units)
    low, high = np.percentile(finite, [2.5, 97.5])
    return Interval(value, float(low), float(high), num_units)


def ratio_interval(
    numerators: ArrayLike, denominators: ArrayLike, *, num_samples: int = 1000, seed: int = 0
) -> Interval:
    """Bootstrap interval of sum(numerators) / sum(denominators) over independent units.

    Units are items: the pairs of one item share raters and texts and are not independent.
    """
    top, bottom = np.asarray(numerators, float), np.asarray(denominators, float)
    if top.size == 0 or bottom.sum() == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    sums = resampled_sums(np.stack([top, bottom], axis=1), num_samples, seed)
    samples = np.divide(sums[:, 0], sums[:, 1], out=np.full(num_samples, math.nan), where=sums[:, 1] > 0)
    return percentile_interval(float(top.sum() / bottom.sum()), samples, top.size)
