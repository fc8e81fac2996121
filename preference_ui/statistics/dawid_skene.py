"""Dawid and Skene (1979): true classes and each rater's confusion matrix from repeated labels, by EM."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class DawidSkene:
    """The fit.

    Attributes:
        posterior: (unit, class) probability of each class.
        confusion: (rater, true class, given class); rows sum to 1.
        prior: (class,) share of each class.
    """

    posterior: np.ndarray
    confusion: np.ndarray
    prior: np.ndarray


def fit_dawid_skene(
    labels: ArrayLike, num_classes: int = 2, *, max_steps: int = 200, smoothing: float = 0.1
) -> DawidSkene:
    """Fit to categorical labels, e.g. flags.

    Args:
        labels: (rater, unit) classes 0..num_classes-1, -1 where missing.
        smoothing: pseudo-count per confusion cell, so that a rater with few labels stays near chance.
    """
    table = np.asarray(labels, int)
    # (rater, unit, class)
    given = (table[:, :, None] == np.arange(num_classes)).astype(float)
    votes = given.sum(axis=0) + 1e-9
    posterior = votes / votes.sum(axis=1, keepdims=True)
    confusion = np.zeros((table.shape[0], num_classes, num_classes))
    prior = np.full(num_classes, 1 / num_classes)
    for _ in range(max_steps):
        counts = np.einsum("uc,rud->rcd", posterior, given) + smoothing
        confusion = counts / counts.sum(axis=2, keepdims=True)
        prior = (posterior.sum(axis=0) + smoothing) / (posterior.shape[0] + smoothing * num_classes)
        log_posterior = np.log(prior) + np.einsum("rud,rcd->uc", given, np.log(confusion))
        log_posterior -= log_posterior.max(axis=1, keepdims=True)
        new = np.exp(log_posterior)
        new /= new.sum(axis=1, keepdims=True)
        change = float(np.abs(new - posterior).max()) if new.size else 0.0
        posterior = new
        if change < 1e-6:
            break
    return DawidSkene(posterior, confusion, prior)
