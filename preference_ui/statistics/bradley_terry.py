"""Bradley-Terry with raters of different reliability and the two biases that pages invite.

    P(rater a prefers i to j) = sigmoid(beta_a (s_i - s_j) + gamma (earlier_i - earlier_j) + lam (longer_i - longer_j))

``s`` is the quality of a response, ``beta_a`` how closely a rater follows it (near 0: clicks at random, below 0: has
the scale upside down), ``gamma`` the pull of earlier places, ``lam`` of longer texts. Ties count one half either way.
The annotator term follows Chen et al. (2013), "Pairwise ranking aggregation in a crowdsourced setting".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_QUALITY_SPREAD = 1.5
_BETA_SPREAD = 0.75
_BIAS_SPREAD = 2.0
_MAX_ROUNDS = 50
# A group whose mean is no larger follows no quality in common: there is nothing to measure by.
_LEAST_MEAN = 0.05
_TOLERANCE = 2e-3
# Expectation-maximisation creeps; steps up to twice as long still lead uphill.
_STRIDE = 1.8
# Draws per group of responses: many for few votes, fewer for many, where the single draw matters less.
_MIN_DRAWS, _MAX_DRAWS, _DRAWS_TIMES_COMPARISONS = 24, 200, 120_000
# The proposal is wider than the normal approximation it comes from: its tails must not be thinner than the truth's.
_WIDENING = 1.5


@dataclass(frozen=True)
class Comparisons:
    """Votes on pairs, one entry per rater and couple; all arrays of shape (comparison,).

    Attributes:
        rater, first, second: indices of the rater and of the two responses.
        outcome: 1 first preferred, 0 second, 0.5 tie.
        place: how much earlier the first was shown, as a share of the list in [-1, 1].
        length: how much longer the first is, as a difference of log lengths.
        weight: of each entry; the entries of one ranking together should weigh about its free choices.
    """

    rater: np.ndarray
    first: np.ndarray
    second: np.ndarray
    outcome: np.ndarray
    place: np.ndarray
    length: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class RaterModel:
    """The fit: reliability per rater, quality per response, and the two biases in logits.

    Attributes:
        beta, beta_error: (rater,) with mean 1 over those who compared anything; NaN for all others.
        rounds: of expectation-maximisation that it took.
    """

    beta: np.ndarray
    beta_error: np.ndarray
    quality: np.ndarray
    position_bias: float
    length_bias: float
    rounds: int = 0

    def reliability(self) -> np.ndarray:
        """Weights in [0, 1] for training: a rater's beta against the median rater's, negative ones 0.

        Who compared nothing yet counts as the group's mean.
        """
        known = self.beta[~np.isnan(self.beta)]
        typical = float(np.median(known)) if known.size else 1.0
        if typical <= 0:
            return np.ones_like(self.beta)
        return np.clip(np.where(np.isnan(self.beta), 1.0, self.beta) / typical, 0.0, 1.0)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -500, 500)))


@dataclass(frozen=True)
class _Layout:
    """Responses sorted into connected groups (in practice: prompts), padded to the widest.

    Attributes:
        group, local: (response,) group and place within it; ``shape``: (groups, widest).
    """

    group: np.ndarray
    local: np.ndarray
    shape: tuple[int, int]


def _layout(data: Comparisons, num_responses: int) -> _Layout:
    label = _groups(data, num_responses)
    order = np.argsort(label, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(label[order]) > 0])
    sizes = np.diff(np.r_[starts, num_responses])
    group, local = np.empty(num_responses, int), np.empty(num_responses, int)
    group[order] = np.repeat(np.arange(starts.size), sizes)
    local[order] = np.arange(num_responses) - np.repeat(starts, sizes)
    return _Layout(group, local, (starts.size, int(sizes.max())))


def _offset(data: Comparisons, rest: np.ndarray) -> np.ndarray:
    return rest[-2] * data.place + rest[-1] * data.length


def _fit_quality(
    data: Comparisons, rest: np.ndarray, quality: np.ndarray, spread: float, layout: _Layout
) -> tuple[np.ndarray, np.ndarray]:
    """Laplace posterior of the qualities given the rest: mean (response,) and covariance (group, w, w)."""
    own, offset = rest[data.rater], _offset(data, rest)
    group, i, j = layout.group[data.first], layout.local[data.first], layout.local[data.second]
    groups, widest = layout.shape
    covariance: np.ndarray = np.empty((groups, widest, widest))
    for _ in range(25):
        share = _sigmoid(own * (quality[data.first] - quality[data.second]) + offset)
        error = data.weight * (share - data.outcome) * own
        slope = np.bincount(data.first, error, quality.size) - np.bincount(data.second, error, quality.size)
        padded = np.zeros(layout.shape)
        padded[layout.group, layout.local] = slope + quality / spread**2
        curve = data.weight * share * (1 - share) * own**2
        precision = np.zeros((groups, widest, widest))
        precision[:, np.arange(widest), np.arange(widest)] = 1 / spread**2
        for rows, columns, sign in ((i, i, 1), (j, j, 1), (i, j, -1), (j, i, -1)):
            np.add.at(precision, (group, rows, columns), sign * curve)
        covariance = np.linalg.inv(precision)
        step = np.einsum("gij,gj->gi", covariance, padded)[layout.group, layout.local]
        # A full Newton step can overshoot far from the optimum; the cap keeps it on the way.
        quality = quality - np.clip(step, -2.0, 2.0)
        if np.abs(step).max() < 1e-4:
            break
    return quality, covariance


@dataclass(frozen=True)
class _Draws:
    """Weighted draws from the posterior of the qualities.

    Attributes:
        quality: (draw, response); ``gap``: (draw, comparison), first minus second.
        share: (draw, group), adding up to 1 over the draws.
    """

    quality: np.ndarray
    gap: np.ndarray
    share: np.ndarray


def _draw(
    data: Comparisons,
    rest: np.ndarray,
    posterior: tuple[np.ndarray, np.ndarray],
    spread: float,
    layout: _Layout,
    noise: np.ndarray,
) -> _Draws:
    """Importance sampling around the normal approximation ``posterior`` (mean, covariance).

    A few votes leave a posterior that is far from normal, and its normal approximation makes all raters look alike.

    Args:
        noise: (draw, group, widest) standard normal numbers, the same in every round.
    """
    mean, covariance = posterior
    steps = np.einsum("gij,sgj->sgi", np.linalg.cholesky(_WIDENING * covariance), noise)
    quality = mean + steps[:, layout.group, layout.local]
    gap = quality[:, data.first] - quality[:, data.second]
    logit = rest[data.rater] * gap + _offset(data, rest)
    votes = data.weight * (data.outcome * logit - np.logaddexp(0.0, logit))
    groups, group = layout.shape[0], layout.group[data.first]
    present = np.zeros(layout.shape, bool)
    present[layout.group, layout.local] = True
    log_share = 0.5 * (noise**2 * present).sum(axis=2)
    for draw in range(noise.shape[0]):
        log_share[draw] += np.bincount(group, votes[draw], groups)
        log_share[draw] -= np.bincount(layout.group, quality[draw] ** 2, groups) / (2 * spread**2)
    share = np.exp(log_share - log_share.max(axis=0))
    return _Draws(quality, gap, share / share.sum(axis=0))


def _improve_rest(data: Comparisons, gap: np.ndarray, weight: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Two Newton steps of (beta, gamma, lam) on the expected log-likelihood, a concave function.

    Args:
        gap, weight: (draw, comparison).
    """
    num_raters = rest.size - 2
    centre = np.concatenate([np.ones(num_raters), np.zeros(2)])
    spread = np.concatenate([np.full(num_raters, _BETA_SPREAD), np.full(2, _BIAS_SPREAD)])
    bias = np.stack([data.place, data.length])
    diagonal = np.arange(num_raters)

    def per_rater(values: np.ndarray) -> np.ndarray:
        return np.bincount(data.rater, values, num_raters)

    for _ in range(2):
        share = _sigmoid(rest[data.rater] * gap + _offset(data, rest))
        error, curve = weight * (share - data.outcome), weight * share * (1 - share)
        total_error, total_curve, slanted = error.sum(axis=0), curve.sum(axis=0), (curve * gap).sum(axis=0)
        slope = np.concatenate([per_rater((error * gap).sum(axis=0)), bias @ total_error])
        slope += (rest - centre) / spread**2
        hessian = np.diag(1 / spread**2)
        hessian[diagonal, diagonal] += per_rater((curve * gap**2).sum(axis=0))
        for k in range(2):
            cross = per_rater(slanted * bias[k])
            hessian[:num_raters, num_raters + k] += cross
            hessian[num_raters + k, :num_raters] += cross
        hessian[num_raters:, num_raters:] += (bias * total_curve) @ bias.T
        rest = rest - np.clip(np.linalg.solve(hessian, slope), -1.0, 1.0)
    return rest


def _groups(data: Comparisons, size: int) -> np.ndarray:
    """Label of the connected group of each response: the smallest index it is linked to."""
    label = np.arange(size)
    while True:
        low = np.minimum(label[data.first], label[data.second])
        new = label.copy()
        np.minimum.at(new, data.first, low)
        np.minimum.at(new, data.second, low)
        if np.array_equal(new, label):
            return label
        label = new


def fit_rater_model(data: Comparisons, num_raters: int, num_responses: int) -> RaterModel:
    """Fit by expectation-maximisation: weighted draws of the qualities, then the best rest under them.

    Integrating over the qualities matters: a response has only a few votes, and a plain joint maximum would
    explain a random clicker's votes by quality. The spread of the qualities is estimated along the way. The
    same votes give the same fit; raters without comparisons have no part in it.
    """
    beta, error = np.full(num_raters, math.nan), np.full(num_raters, math.nan)
    if data.first.size == 0:
        return RaterModel(beta, error, np.zeros(num_responses), 0.0, 0.0)
    present, rater = np.unique(data.rater, return_inverse=True)
    fit = _fit(dataclasses.replace(data, rater=rater), present.size, num_responses)
    beta[present], error[present] = fit.beta, fit.beta_error
    return dataclasses.replace(fit, beta=beta, beta_error=error)


def _fit(data: Comparisons, num_raters: int, num_responses: int) -> RaterModel:
    """The fit of raters who all have comparisons."""
    quality = np.zeros(num_responses)
    rest = np.concatenate([np.ones(num_raters), np.zeros(2)])
    spread = _QUALITY_SPREAD
    layout = _layout(data, num_responses)
    group = layout.group[data.first]
    num_draws = int(np.clip(_DRAWS_TIMES_COMPARISONS // data.first.size, _MIN_DRAWS, _MAX_DRAWS)) // 2
    half = np.random.default_rng(0).standard_normal((num_draws, *layout.shape))
    noise = np.concatenate([half, -half])
    rounds, moved = 0, math.inf
    while rounds < _MAX_ROUNDS and moved >= _STRIDE * _TOLERANCE:
        rounds += 1
        quality, covariance = _fit_quality(data, rest, quality, spread, layout)
        draws = _draw(data, rest, (quality, covariance), spread, layout, noise)
        square = (draws.share[:, layout.group] * draws.quality**2).sum(axis=0)
        weight = draws.share[:, group] * data.weight
        before = np.append(rest, np.log(spread))
        step = np.append(_improve_rest(data, draws.gap, weight, rest), 0.5 * np.log(square.mean())) - before
        after = before + _STRIDE * step
        # Steep raters of close qualities are the same votes as flat raters of distant ones; only the prior tells them
        # apart. Its best scale is known, so the fit need not creep there.
        scale = _best_scale(after[:num_raters])
        rest, spread = after[:-1].copy(), float(np.clip(np.exp(after[-1]) / scale, 0.2, 5.0))
        rest[:num_raters] *= scale
        quality = quality / scale
        moved = float(np.abs(np.append(rest, np.log(spread)) - before).max())
    share = _sigmoid(rest[data.rater] * draws.gap + _offset(data, rest))
    seen = (weight * share * (1 - share) * draws.gap**2).sum(axis=0)
    variance = 1 / (np.bincount(data.rater, seen, num_raters) + 1 / _BETA_SPREAD**2)
    beta, mean = _about_the_mean(rest[:num_raters], variance)
    average = (draws.share[:, layout.group] * draws.quality).sum(axis=0)
    return RaterModel(beta / mean, np.sqrt(variance) / mean, average * mean, float(rest[-2]), float(rest[-1]), rounds)


def _best_scale(beta: np.ndarray) -> float:
    """The factor at which the prior likes these betas best."""
    total = float(beta.sum())
    return total / float((beta**2).sum()) if total > _LEAST_MEAN * beta.size else 1.0


def _about_the_mean(beta: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, float]:
    """Betas as if the prior's centre, 1, had been the group's mean, and that mean.

    In a group with clickers the mean is below 1, and who has few votes would stand above the group for that alone.
    ``share`` is how much of a beta is the prior's; a beta that is nothing else has no part in the mean.
    """
    share = variance / _BETA_SPREAD**2
    mean = float((beta - share).sum() / (1 - share).sum())
    return (beta - share * (1 - mean), mean) if mean > _LEAST_MEAN else (beta, 1.0)


def comparisons_of(rows: Sequence[tuple[int, int, int, float, float, float, float]]) -> Comparisons:
    """Build from ``(rater, first, second, outcome, place, length, weight)`` rows."""
    table = np.array(rows, float).reshape(-1, 7)
    rater, first, second = (table[:, k].astype(int) for k in range(3))
    return Comparisons(rater, first, second, table[:, 3], table[:, 4], table[:, 5], table[:, 6])
