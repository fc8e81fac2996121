"""Advantage estimators. All are constants to the optimizer (no gradient) and 0 in masked slots."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.algos.masks import at_least_float32, fill_masked, masked_var, require_mask
from rlhf.algos.moments import Moments, masked_moments

WHITEN_EPSILON = 1e-8
GROUP_STD_EPSILON = 1e-6


@dataclass(frozen=True)
class Advantages:
    """Advantages and the value targets that go with them, both ``(batch, response)``, not whitened."""

    advantages: Tensor
    returns: Tensor


@torch.no_grad()
def gae(
    rewards: Tensor,
    values: Tensor,
    response_mask: Tensor,
    *,
    gamma: float,
    lam: float,
    bootstrap: Tensor | None = None,
) -> Advantages:
    """Generalised advantage estimation (arXiv:1506.02438, eq. 16) over the kept tokens of each row.

    Masked slots, at the ends *or between* kept tokens (observations of a multi-turn episode), are stepped
    over as if they were cut out: they neither discount nor contribute, and may hold NaN or inf. A reward
    earned in an observation slot must therefore be given to the action token before it.

    Args:
        rewards: ``(batch, response)``.
        values: ``(batch, response)``, the value of the state *before* each token.
        response_mask: ``(batch, response)`` bool.
        gamma: discount per kept token.
        lam: 1 for Monte-Carlo returns, 0 for one-step errors.
        bootstrap: ``(batch,)`` value of the state after the last kept token, for rows that were cut off;
            default 0, the episode ended.

    Returns:
        Advantages, and returns = advantages + values.
    """
    rewards = fill_masked(rewards, response_mask)
    values = fill_masked(values, response_mask)
    next_value = torch.zeros_like(values[:, 0]) if bootstrap is None else at_least_float32(bootstrap)
    running = torch.zeros_like(next_value)
    advantages = torch.zeros_like(values)
    for t in range(values.shape[1] - 1, -1, -1):
        keep = response_mask[:, t]
        error = rewards[:, t] + gamma * next_value - values[:, t]
        running = torch.where(keep, error + gamma * lam * running, running)
        next_value = torch.where(keep, values[:, t], next_value)
        advantages[:, t] = running
    advantages = fill_masked(advantages, response_mask)
    return Advantages(advantages, advantages + values)


def discounted_returns(rewards: Tensor, response_mask: Tensor, *, gamma: float) -> Tensor:
    """Discounted sum of this and all later rewards of the row, over kept tokens; ``(batch, response)``."""
    return gae(rewards, torch.zeros_like(rewards), response_mask, gamma=gamma, lam=1.0).returns


@torch.no_grad()
def whiten_advantages(advantages: Tensor, mask: Tensor, *, moments: Moments | None = None) -> Tensor:
    """Bring the kept advantages to zero mean and unit biased variance.

    Args:
        advantages: ``(batch, response)``. Take returns from :func:`gae` before whitening, never after.
        mask: ``(batch, response)`` bool.
        moments: those of the global batch, when this is one rank's part of it (merge each rank's
            ``masked_moments``); by default ``advantages`` is taken to be the global batch.
    """
    if moments is None:
        moments = masked_moments(advantages, mask)
    centred = fill_masked(advantages, mask) - moments.mean
    return fill_masked(centred * torch.rsqrt(moments.variance + WHITEN_EPSILON), mask).to(centred.dtype)


@torch.no_grad()
def grpo_advantages(scores: Tensor, group_ids: Tensor, response_mask: Tensor, *, scale_by_std: bool) -> Tensor:
    """Score minus the mean of its group, at every response token (arXiv:2402.03300, section 4.1.2).

    Args:
        scores: ``(batch,)``.
        group_ids: ``(batch,)`` integers, equal for responses to one prompt, in any order.
        response_mask: ``(batch, response)`` bool.
        scale_by_std: divide by the group's biased standard deviation (as in the paper) or not
            (arXiv:2503.20783). A group of one, or of equal scores, gets 0.

    Returns:
        ``(batch, response)``.
    """
    centred, inverse, count = _centre_in_groups(scores, group_ids)
    if scale_by_std:
        variance = torch.zeros_like(count).index_add(0, inverse, centred.square()) / count
        centred = centred / (variance.sqrt() + GROUP_STD_EPSILON)[inverse]
    return _at_every_token(centred, response_mask)


@torch.no_grad()
def rloo_advantages(scores: Tensor, group_ids: Tensor, response_mask: Tensor) -> Tensor:
    """Score minus the mean of the *other* scores of its group, at every response token (arXiv:2402.14740).

    Args:
        scores: ``(batch,)``.
        group_ids: ``(batch,)`` integers, equal for responses to one prompt, in any order.
        response_mask: ``(batch, response)`` bool.

    Raises:
        ValueError: a group has a single member, so that there is no other score.
    """
    centred, inverse, count = _centre_in_groups(scores, group_ids)
    if bool((count < 2).any()):
        raise ValueError("leave-one-out needs at least 2 responses per prompt: a group has only 1")
    return _at_every_token(centred * (count / (count - 1))[inverse], response_mask)


def reinforce_plus_plus_advantages(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Discounted return from each token on, whitened over the global batch (arXiv:2501.03262).

    Args:
        rewards: ``(batch, response)`` with the KL penalty in them, the whole batch of the step.
        mask: ``(batch, response)`` bool.
        gamma: discount per kept token.
    """
    return whiten_advantages(discounted_returns(rewards, mask, gamma=gamma), mask)


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """``1 - Var(returns - values) / Var(returns)`` over kept tokens: 1 is perfect, 0 as good as a constant.

    Returns:
        A scalar; NaN if the returns do not vary, for then the question has no answer.
    """
    require_mask(mask, values, returns)
    unexplained = masked_var(at_least_float32(returns) - at_least_float32(values), mask)
    total = masked_var(returns, mask)
    return torch.where(total > 0, 1.0 - unexplained / total, torch.nan)


def _centre_in_groups(scores: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return float64 (scores minus group mean, index of each score's group, size of each group)."""
    if scores.shape != group_ids.shape or scores.dim() != 1:
        raise ValueError(
            f"scores and group_ids must both be (batch,), got {tuple(scores.shape)}, {tuple(group_ids.shape)}"
        )
    groups, inverse = torch.unique(group_ids, return_inverse=True)
    exact = scores.double()
    zeros = exact.new_zeros(groups.shape[0])
    count = zeros.index_add(0, inverse, torch.ones_like(exact))
    mean = zeros.index_add(0, inverse, exact) / count
    return exact - mean[inverse], inverse, count


def _at_every_token(per_sequence: Tensor, response_mask: Tensor) -> Tensor:
    require_mask(response_mask)
    return fill_masked(per_sequence.float().unsqueeze(1).expand(response_mask.shape), response_mask)
