"""Count, mean and squared deviation that merge across ranks and batches (Chan, Golub, LeVeque 1979)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf.algos.masks import fill_masked


@dataclass(frozen=True)
class Moments:
    """Moments of a set of numbers, float64 scalars; ``m2`` is the sum of squared deviations."""

    count: Tensor
    mean: Tensor
    m2: Tensor

    @property
    def variance(self) -> Tensor:
        """Biased (population) variance; 0 for an empty set."""
        return self.m2 / self.count.clamp(min=1)

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets together, as if they had been seen at once."""
        count = self.count + other.count
        weight = other.count / count.clamp(min=1)
        delta = other.mean - self.mean
        return Moments(
            count=count,
            mean=self.mean + delta * weight,
            m2=self.m2 + other.m2 + delta.square() * self.count * weight,
        )


@torch.no_grad()
def masked_moments(x: Tensor, mask: Tensor) -> Moments:
    """Moments of ``x`` where ``mask`` is True, accumulated in float64.

    Ranks that hold parts of one batch each compute theirs and merge them: the result is that of the whole
    batch.
    """
    kept = fill_masked(x, mask).double()
    count = mask.sum().double()
    mean = kept.sum() / count.clamp(min=1)
    m2 = (kept - mean).masked_fill(~mask, 0.0).square().sum()
    return Moments(count, mean, m2)


class RunningMoments:
    """Mean and standard deviation of all scores seen so far, to bring scores to zero mean and unit variance.

    Mergeable across ranks and exact over a save and a load. The first :meth:`update` must precede
    :meth:`normalise`.
    """

    def __init__(self) -> None:
        zero = torch.zeros((), dtype=torch.float64)
        self._moments = Moments(zero, zero, zero)

    @property
    def count(self) -> Tensor:
        return self._moments.count

    @property
    def mean(self) -> Tensor:
        return self._moments.mean

    @property
    def std(self) -> Tensor:
        """Biased standard deviation, float64."""
        return self._moments.variance.sqrt()

    def update(self, scores: Tensor) -> None:
        """Add a batch of finite scores of any shape; they are moved to the CPU."""
        scores = scores.detach().cpu()
        self._moments = self._moments.merge(masked_moments(scores, torch.ones_like(scores, dtype=torch.bool)))

    def merge(self, other: RunningMoments) -> None:
        """Add everything the other one has seen."""
        self._moments = self._moments.merge(other._moments)

    def normalise(self, scores: Tensor) -> Tensor:
        """Return ``(scores - mean) / std``; while all scores seen are equal, only the mean is subtracted.

        Raises:
            ValueError: nothing has been seen yet.
        """
        if not self.count > 0:
            raise ValueError("no scores seen yet: call update() before normalise()")
        std = torch.where(self.std > 0, self.std, torch.ones_like(self.std))
        return ((scores.double() - self.mean.to(scores.device)) / std.to(scores.device)).to(scores.dtype)

    def state_dict(self) -> dict[str, float]:
        """Plain floats, exact in JSON."""
        m = self._moments
        return {"count": float(m.count), "mean": float(m.mean), "m2": float(m.m2)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        count, mean, m2 = (torch.tensor(float(state[k]), dtype=torch.float64) for k in ("count", "mean", "m2"))
        self._moments = Moments(count, mean, m2)
