"""How far two computations of one policy may be apart by rounding, and the refusal of a step that is further (ADR 28).

Trainer and rollout workers add the same products in another order, and so do two of the trainer's passes with different
numbers of rows. In float32 that leaves 1e-5 of a nat. In bfloat16 a logit's last place alone is 0.06 between 8 and 16
and 0.125 between 16 and 32: single tokens are off by tenths of a nat, the mean by hundredths.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf.algos.kl import kl_k1
from rlhf.algos.masks import masked_mean
from rlhf.config import PpoConfig
from rlhf.errors import NumericsError, WeightSyncError
from rlhf.rollout.experience import Experience

ROUNDING: dict[str, tuple[float, float | None]] = {"float32": (1e-4, None), "bfloat16": (2.0, 0.2)}
"""What ``model.dtype`` may leave between two computations, unless the config says: (largest, mean) difference of
log-probs, or of ratios and 1, over all tokens; None: the mean is not bounded by itself."""


@dataclass(frozen=True)
class Bounds:
    """Of one key: the largest difference, and the mean where it is bounded by itself.

    Attributes:
        given: the config names the largest; otherwise both are those of ``dtype``.
    """

    key: str
    dtype: str
    most: float
    mean: float | None
    given: bool

    @classmethod
    def of(cls, key: str, value: float | None, dtype: str) -> Bounds:
        """The config's value, or what ``dtype`` leaves."""
        most, mean = ROUNDING[dtype] if value is None else (value, None)
        return cls(key, dtype, most, mean, value is not None)

    def hold(self, most: float, mean: float) -> bool:
        """Whether differences are within; NaN is not."""
        return most <= self.most and (self.mean is None or mean <= self.mean)

    def __str__(self) -> str:
        """The key, what it stands for, and what to do where rounding alone is behind it."""
        if self.given and self.most < ROUNDING[self.dtype][0]:
            return f"{self.key}={self.most:g}; if it is rounding in model.dtype={self.dtype}, leave {self.key} out"
        if self.given:
            return f"{self.key}={self.most:g}"
        both = f"{self.most:g}" if self.mean is None else f"{self.most:g} at most and {self.mean:g} on average"
        return f"{self.key} left out is {both} in model.dtype={self.dtype}; if it is rounding, set {self.key} higher"


@dataclass(frozen=True)
class Agreement:
    """A run's bounds: between trainer and rollout workers, policy and reference, and two passes of the trainer."""

    sync: Bounds
    reference: Bounds
    ratio: Bounds

    @classmethod
    def of(cls, config: PpoConfig, trainer: Mapping[str, Any], workers: Iterable[Mapping[str, Any]]) -> Agreement:
        """From what a training rank and the rollout workers say: they read ``model.dtype=auto``, each on its device."""
        own = trainer["dtype"]
        coarsest = "bfloat16" if "bfloat16" in {own, *(worker["dtype"] for worker in workers)} else own
        return cls(
            Bounds.of("sync_tolerance", config.sync_tolerance, coarsest),
            Bounds.of("sync_tolerance", config.sync_tolerance, own),
            Bounds.of("ratio_tolerance", config.ratio_tolerance, own),
        )


def refuse_apart(bounds: Bounds, version: int, most: float, mean: float) -> None:
    """After a sync: trainer and rollout workers hold the same bytes, and must say the same of the canary's tokens.

    Raises:
        WeightSyncError: they do not.
    """
    if not bounds.hold(most, mean):
        raise WeightSyncError(
            f"after sync of version {version} the canary's log-probs differ by {most:.3g} at most, {mean:.3g} on "
            f"average, between trainer and rollout workers ({bounds}): the workers have confirmed the published bytes "
            "and do not compute what the trainer does"
        )


def refuse_reference(bounds: Bounds, batch: Experience) -> None:
    """Before any update the policy is its own reference, token by token.

    Raises:
        WeightSyncError: it is not.
    """
    mask = batch.response_mask
    apart = kl_k1(batch.old_logprobs, batch.ref_logprobs, mask).abs()  # (batch, response) nats, 0 in masked slots
    most, mean = float(apart.max()), float(masked_mean(apart, mask))
    if not bounds.hold(most, mean):
        raise WeightSyncError(
            f"policy and reference differ by {most:.3g} nats at a token before any update, {mean:.3g} on average "
            f"({bounds}): the reference is not the start policy"
        )


def refuse_ratio(bounds: Bounds, step: int, learned: Mapping[str, Any]) -> None:
    """Before a step's first update the trained policy is the one that old log-probs are of.

    Raises:
        NumericsError: it is not.
    """
    most, mean = learned["ratio_first"], learned["ratio_first_mean"]
    if not bounds.hold(most, mean) and not learned["updates_skipped"]:
        raise NumericsError(
            f"step {step}: the first micro-batch's ratio is off 1 by {most:.3g} at most, {mean:.3g} on average "
            f"({bounds}): old log-probs are not those of the trained policy"
        )


def refuse_mismatch(limit: float, step: int, mean: float) -> None:
    """On the tokens that it drew, the rollout engine's log-probs must be near the trainer's; ``limit`` nats per token.

    Raises:
        WeightSyncError: they are not.
    """
    if not mean <= limit:
        raise WeightSyncError(
            f"step {step}: rollout engine and trainer differ by {mean:.3g} nats per token "
            f"(mismatch_limit={limit:g}) on the same adapter: they do not compute the same model"
        )
