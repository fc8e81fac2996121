"""From one score per sequence to one reward per token."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.algos.kl import KLEstimator, kl_k1
from rlhf.algos.masks import at_least_float32, fill_masked, last_token_mask, masked_mean, masked_var
from rlhf.algos.moments import RunningMoments

__all__ = [
    "RunningMoments",
    "clip_scores",
    "missing_eos_replace",
    "missing_eos_scale",
    "missing_eos_subtract",
    "penalised_rewards",
    "whiten_rewards_keep_mean",
]

WHITEN_EPSILON = 1e-8


@torch.no_grad()
def penalised_rewards(
    scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    response_mask: Tensor,
    *,
    kl_coef: float,
    kl: KLEstimator = kl_k1,
) -> Tensor:
    """Pay the score at the last response token (EOS, if there is one), charge ``kl_coef * KL`` at each.

    Args:
        scores: ``(batch,)``; the score of a row without response tokens has no slot and is lost.
        logprobs: ``(batch, response)`` of the policy that sampled.
        ref_logprobs: ``(batch, response)`` of the frozen reference.
        response_mask: ``(batch, response)`` bool.
        kl_coef: weight of the penalty.
        kl: estimator per token; k1 makes the sum over the episode an unbiased estimate.

    Returns:
        ``(batch, response)`` rewards, 0 in masked slots, without gradient.
    """
    penalty = kl_coef * kl(logprobs, ref_logprobs, response_mask)
    paid = at_least_float32(scores).unsqueeze(1).expand(response_mask.shape)
    return fill_masked(paid, last_token_mask(response_mask)) - penalty


def missing_eos_subtract(scores: Tensor, has_eos: Tensor, *, penalty: float) -> Tensor:
    """Subtract ``penalty`` > 0 from the score of every row that did not end by itself.

    Args:
        scores: ``(batch,)``.
        has_eos: ``(batch,)`` bool, see :func:`rlhf.algos.masks.ends_with_eos`; such rows are untouched.
    """
    if not penalty > 0:
        raise ValueError(f"penalty is subtracted and must be above 0, got {penalty}")
    return torch.where(has_eos, scores, scores - penalty)


def missing_eos_replace(scores: Tensor, has_eos: Tensor, *, value: float) -> Tensor:
    """Give every row that did not end by itself the score ``value`` (-1 in arXiv:2403.17031)."""
    return torch.where(has_eos, scores, torch.full_like(scores, value))


def missing_eos_scale(scores: Tensor, has_eos: Tensor, *, factor: float) -> Tensor:
    """Multiply the score of every row that did not end by itself by ``factor`` in [0, 1].

    Meant for scores that are not negative: a negative one is *raised* by a factor below 1.
    """
    if not 0 <= factor <= 1:
        raise ValueError(f"factor must be in [0, 1], got {factor}")
    return torch.where(has_eos, scores, scores * factor)


def clip_scores(scores: Tensor, *, low: float, high: float) -> Tensor:
    """Clip every score into [low, high]."""
    if not low < high:
        raise ValueError(f"low must be below high, got low={low}, high={high}")
    return scores.clamp(low, high)


@torch.no_grad()
def whiten_rewards_keep_mean(rewards: Tensor, mask: Tensor) -> Tensor:
    """Scale the deviations of the kept rewards to unit (biased) variance and leave their mean where it is.

    Args:
        rewards: ``(batch, response)``, the whole batch of the step.
        mask: ``(batch, response)`` bool.

    Returns:
        ``(batch, response)``, 0 in masked slots.
    """
    mean = masked_mean(rewards, mask)
    whitened = (fill_masked(rewards, mask) - mean) * torch.rsqrt(masked_var(rewards, mask) + WHITEN_EPSILON)
    return fill_masked(whitened + mean, mask)
