"""Estimators of the KL divergence from the reference, and controllers of its coefficient.

With d = log pi - log pi_ref at a token drawn from pi (http://joschu.net/blog/kl-approx.html):
k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d. k1 and k3 have the reverse KL(pi || pi_ref) as their mean, k2
only nearly. As *losses* they differ again: see ``kl_loss_k2`` in :mod:`rlhf.algos.losses`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf.algos.masks import at_least_float32, fill_masked, masked_sum, require_mask
from rlhf.errors import CheckpointError, ConfigError, NumericsError

KLEstimator = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(logprobs, ref_logprobs, mask) -> per-token KL``, all of one shape, 0 in masked slots."""


def masked_log_ratio(logprobs: Tensor, other_logprobs: Tensor, mask: Tensor) -> Tensor:
    """``logprobs - other_logprobs`` in at least float32, exactly 0 (also in gradient) in masked slots."""
    require_mask(mask, logprobs, other_logprobs)
    return fill_masked(at_least_float32(logprobs) - at_least_float32(other_logprobs), mask)


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Log-ratio per token: unbiased, of any sign. For rewards; as a loss its mean gradient is zero."""
    return masked_log_ratio(logprobs, ref_logprobs, mask)


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Half the squared log-ratio per token: non-negative, biased as a value, exact in gradient."""
    return 0.5 * masked_log_ratio(logprobs, ref_logprobs, mask).square()


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """``exp(-d) - 1 + d`` per token: non-negative and unbiased as a value."""
    log_ratio = masked_log_ratio(logprobs, ref_logprobs, mask)
    return torch.expm1(-log_ratio) + log_ratio


def sequence_kl(logprobs: Tensor, ref_logprobs: Tensor, response_mask: Tensor) -> Tensor:
    """Sum of k1 over the response tokens of each sequence: what an adaptive controller measures.

    Args:
        logprobs: ``(batch, response)`` of the policy that sampled.
        ref_logprobs: ``(batch, response)``.
        response_mask: ``(batch, response)`` bool.

    Returns:
        ``(batch,)`` in nats.
    """
    return masked_sum(kl_k1(logprobs, ref_logprobs, response_mask), response_mask, dim=1)


class FixedKLController:
    """A coefficient that does not move."""

    def __init__(self, coef: float) -> None:
        self.coef = _non_negative("coef", coef)

    def update(self, measured_kl: float, num_sequences: int) -> None:
        """Leave the coefficient alone, but refuse a KL that is not finite."""
        _finite_kl(measured_kl)

    def state_dict(self) -> dict[str, Any]:
        return {"kind": "fixed", "coef": self.coef}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that the saved coefficient is this one.

        Raises:
            CheckpointError: the state is of another kind of controller or has another coefficient.
        """
        _same_kind(state, "fixed")
        if state["coef"] != self.coef:
            raise CheckpointError(
                f"the checkpoint was trained with a fixed KL coefficient of {state['coef']}, this run has "
                f"{self.coef}; resume with the same value or start a new run"
            )


class AdaptiveKLController:
    """Proportional controller of arXiv:1909.08593, section 2.2.

    Each update of n sequences multiplies the coefficient by ``1 + clip(KL / target - 1, +-0.2) n / horizon``.

    Args:
        init_coef: the coefficient before the first update, > 0.
        target: the KL per sequence (sum over its tokens, nats) to steer to, > 0.
        horizon: number of sequences over which a full error is corrected, > 0.
    """

    max_error = 0.2

    def __init__(self, init_coef: float, target: float, horizon: float) -> None:
        self.coef = _positive("init_coef", init_coef)
        self.target = _positive("target", target)
        self.horizon = _positive("horizon", horizon)

    def update(self, measured_kl: float, num_sequences: int) -> None:
        """Move the coefficient, once per step, by the KL measured before the optimizer moved the policy.

        Args:
            measured_kl: mean of :func:`sequence_kl` over the step's sequences.
            num_sequences: how many sequences that were.

        Raises:
            NumericsError: the KL is not finite.
            ConfigError: the horizon is so short that one update could turn the coefficient to zero or below.
        """
        _finite_kl(measured_kl)
        step = num_sequences / self.horizon
        if self.max_error * step >= 1:
            raise ConfigError(
                f"horizon={self.horizon} is too short for {num_sequences} sequences a step: an update could "
                f"make the KL coefficient negative; use a horizon above {self.max_error * num_sequences}"
            )
        error = min(max(measured_kl / self.target - 1.0, -self.max_error), self.max_error)
        self.coef *= 1.0 + error * step

    def state_dict(self) -> dict[str, Any]:
        return {"kind": "adaptive", "coef": self.coef}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the saved coefficient; target and horizon stay those of this run's configuration.

        Raises:
            CheckpointError: the state is of another kind of controller.
        """
        _same_kind(state, "adaptive")
        self.coef = _positive("coef", state["coef"])


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"KL controller: {name} must be a finite number above 0, got {value}")
    return float(value)


def _non_negative(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"KL controller: {name} must be a finite number, 0 or above, got {value}")
    return float(value)


def _finite_kl(measured_kl: float) -> None:
    if not math.isfinite(measured_kl):
        raise NumericsError(f"measured KL is {measured_kl}: look for NaN log-probabilities before updating anything")


def _same_kind(state: Mapping[str, Any], kind: str) -> None:
    if state.get("kind") != kind:
        raise CheckpointError(
            f"the checkpoint holds a {state.get('kind')!r} KL controller, this run uses a {kind!r} one; "
            "resume with the same setting or start a new run"
        )
