"""Losses. Each is a sum over kept tokens (or pairs) divided by a denominator that the caller owns.

The denominator is the *global* count: of all response tokens of the minibatch, over all micro-batches and
ranks. Parts of a batch then add up to the loss, and the gradient, of the whole; a mean of means would weigh
short parts too much. Every other field is a plain sum or maximum without gradient, to be added up (or
maximised) across parts in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf.algos.kl import kl_k2, kl_k3, masked_log_ratio
from rlhf.algos.masks import at_least_float32, fill_masked, masked_mean, masked_sum
from rlhf.errors import ConfigError

Denominator = Tensor | float


@dataclass(frozen=True)
class PolicyLoss:
    """A clipped policy loss and what to watch beside it; all scalars.

    Attributes:
        loss: sum / denominator, with gradient.
        clip_fraction_sum: number of tokens whose gradient the clip has removed.
        ratio_sum: sum of pi_new / pi_old; its mean is near 1 while the two are close, exactly 1 before any
            update.
        ratio_deviation_max: largest ``abs(ratio - 1)``; 0 on the first micro-batch of a step if nothing is
            wrong.
        ratio_deviation_sum: sum of ``abs(ratio - 1)`` over kept tokens.
        approx_kl_sum: sum of the k3 estimate of KL(old || new), never negative.
        num_tokens: number of kept tokens.
    """

    loss: Tensor
    clip_fraction_sum: Tensor
    ratio_sum: Tensor
    ratio_deviation_max: Tensor
    ratio_deviation_sum: Tensor
    approx_kl_sum: Tensor
    num_tokens: Tensor


@dataclass(frozen=True)
class ValueLoss:
    """A value loss; all scalars, ``loss`` alone has a gradient.

    Attributes:
        loss: sum / denominator.
        clip_fraction_sum: number of tokens where the clipped error was the larger one; 0 for the unclipped
            loss.
        squared_error_sum: sum of (value - return)^2, unclipped and not halved.
        num_tokens: number of kept tokens.
    """

    loss: Tensor
    clip_fraction_sum: Tensor
    squared_error_sum: Tensor
    num_tokens: Tensor


@dataclass(frozen=True)
class PairwiseLoss:
    """A reward-model loss; all scalars, ``loss`` alone has a gradient.

    Attributes:
        loss: sum / denominator.
        correct_sum: number of pairs with chosen > rejected, whatever the margin; a tie is wrong.
        difference_sum: sum of chosen - rejected.
    """

    loss: Tensor
    correct_sum: Tensor
    difference_sum: Tensor


def ppo_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    denominator: Denominator,
) -> PolicyLoss:
    """The clipped surrogate of arXiv:1707.06347, eq. 7, negated: ``-min(r A, clip(r, 1 - low, 1 + high) A)``.

    To correct for rollouts by another policy, multiply the advantages by
    :func:`truncated_importance_weights` first: weights are not negative, so that they pass through the
    minimum.

    Args:
        logprobs: ``(batch, response)`` of the policy being trained; the only input that gets a gradient.
        old_logprobs: ``(batch, response)`` of the policy at the start of the step.
        advantages: ``(batch, response)``.
        response_mask: ``(batch, response)`` bool; masked slots may hold anything.
        clip_low: in (0, 1).
        clip_high: above 0; the paper has clip_low == clip_high.
        denominator: global number of response tokens.
    """
    log_ratio, advantages, plain, clipped = _surrogates(
        logprobs, old_logprobs, advantages, response_mask, clip_low=clip_low, clip_high=clip_high
    )
    losses = torch.maximum(plain, clipped)
    return _policy_loss(losses, clipped > plain, log_ratio, response_mask, denominator)


def ppo_dual_clip_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float,
    denominator: Denominator,
) -> PolicyLoss:
    """:func:`ppo_policy_loss` with the loss of negative advantages bounded by ``-dual_clip * A``.

    Source: arXiv:1912.09729, section 3.

    Args:
        logprobs: as there, and so are the others.
        dual_clip: above 1; the paper uses 3.
    """
    if not dual_clip > 1:
        raise ValueError(f"dual_clip must be above 1, got {dual_clip}")
    log_ratio, advantages, plain, clipped = _surrogates(
        logprobs, old_logprobs, advantages, response_mask, clip_low=clip_low, clip_high=clip_high
    )
    losses = torch.maximum(plain, clipped)
    bound = -dual_clip * advantages
    bounded = (advantages < 0) & (losses > bound)
    return _policy_loss(
        torch.where(bounded, bound, losses),
        (clipped > plain) | bounded,
        log_ratio,
        response_mask,
        denominator,
    )


def value_loss(values: Tensor, returns: Tensor, mask: Tensor, *, denominator: Denominator) -> ValueLoss:
    """Half the squared error of the values.

    Args:
        values: ``(batch, response)``; the only input that gets a gradient.
        returns: ``(batch, response)``.
        mask: ``(batch, response)`` bool.
        denominator: global number of response tokens.
    """
    squared = _squared_error(values, returns, mask)
    return _value_loss(squared, torch.zeros_like(mask), squared, mask, denominator)


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    clip: float,
    denominator: Denominator,
) -> ValueLoss:
    """``0.5 max((V - R)^2, (V_old + clip(V - V_old, +-clip) - R)^2)``, a twin of the policy clip.

    Args:
        values: ``(batch, response)``; the only input that gets a gradient.
        old_values: ``(batch, response)``, the critic's at the start of the step.
        returns: ``(batch, response)``.
        mask: ``(batch, response)`` bool.
        clip: above 0, in units of the value.
        denominator: global number of response tokens.
    """
    if not clip > 0:
        raise ValueError(f"clip must be above 0, got {clip}; value_loss is the unclipped loss")
    old_values = fill_masked(old_values.detach(), mask)
    own = fill_masked(values, mask)
    moved = own - old_values
    near_old = torch.where(moved.abs() <= clip, own, old_values + moved.clamp(-clip, clip))  # no rounding within reach
    plain, clipped = _squared_error(values, returns, mask), _squared_error(near_old, returns, mask)
    return _value_loss(torch.maximum(plain, clipped), clipped > plain, plain, mask, denominator)


def kl_loss_k2(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, denominator: Denominator) -> Tensor:
    """KL as a loss by k2: its mean gradient, on tokens of the current policy, is that of KL(pi || pi_ref)."""
    return masked_mean(kl_k2(logprobs, ref_logprobs.detach(), mask), mask, denominator=denominator)


def kl_loss_k3(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, denominator: Denominator) -> Tensor:
    """KL as a loss by k3: its mean gradient is that of the *forward* KL(pi_ref || pi); prefer k2."""
    return masked_mean(kl_k3(logprobs, ref_logprobs.detach(), mask), mask, denominator=denominator)


def kl_loss_by_name(name: str) -> Callable[..., Tensor]:
    """Look up a KL loss by the name a configuration uses.

    Raises:
        ConfigError: for ``"k1"``, which cannot be a loss, and for unknown names.
    """
    if name == "k1":
        raise ConfigError(
            "KL estimator k1 cannot be a loss: the mean of its gradient is zero, whatever the KL is. "
            "Use k2, whose gradient is that of the reverse KL, or put k1 into the reward"
        )
    known = {"k2": kl_loss_k2, "k3": kl_loss_k3}
    if name not in known:
        raise ConfigError(f"unknown KL loss {name!r}: use one of {sorted(known)}")
    return known[name]


@torch.no_grad()
def truncated_importance_weights(logprobs: Tensor, behaviour_logprobs: Tensor, mask: Tensor, *, cap: float) -> Tensor:
    """``min(pi / mu, cap)`` per token, for tokens sampled by ``mu`` (an inference engine, an older adapter).

    Args:
        logprobs: ``(batch, response)`` by the trainer of the weights that should have sampled.
        behaviour_logprobs: ``(batch, response)`` as reported by the sampler.
        mask: ``(batch, response)`` bool.
        cap: above 0; truncation from above only, small weights are kept.

    Returns:
        ``(batch, response)``, 0 in masked slots, without gradient.
    """
    return fill_masked(_capped_exp(masked_log_ratio(logprobs, behaviour_logprobs, mask), cap), mask)


@torch.no_grad()
def truncated_sequence_weights_sum(logprobs: Tensor, behaviour_logprobs: Tensor, mask: Tensor, *, cap: float) -> Tensor:
    """``min(exp(sum of log-ratios), cap)`` per sequence, ``(batch,)``: the true, high-variance ratio."""
    return _capped_exp(masked_log_ratio(logprobs, behaviour_logprobs, mask).sum(dim=1), cap)


@torch.no_grad()
def truncated_sequence_weights_mean(
    logprobs: Tensor, behaviour_logprobs: Tensor, mask: Tensor, *, cap: float
) -> Tensor:
    """``min(exp(mean of log-ratios), cap)`` per sequence, ``(batch,)``, as in arXiv:2507.18071."""
    num_tokens = mask.sum(dim=1).clamp(min=1)
    return _capped_exp(masked_log_ratio(logprobs, behaviour_logprobs, mask).sum(dim=1) / num_tokens, cap)


def pairwise_reward_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    denominator: Denominator,
    probability: Tensor | None = None,
    margin: Tensor | None = None,
    weight: Tensor | None = None,
) -> PairwiseLoss:
    """Cross-entropy of the Bradley-Terry model, ``-log sigmoid(chosen - rejected - margin)``, in float32.

    Args:
        chosen: ``(n,)`` scores.
        rejected: ``(n,)`` scores.
        denominator: global number of pairs (or sum of weights).
        probability: ``(n,)`` in [0, 1], the share of annotators who agree that chosen is better; default 1.
            The loss is then smallest where the model's probability equals it.
        margin: ``(n,)``, by how much chosen should win; it shifts the difference, for both labels.
        weight: ``(n,)``, how much each pair counts.
    """
    difference = chosen.float() - rejected.float()
    logit = difference if margin is None else difference - margin.float()
    losses = -F.logsigmoid(logit)
    if probability is not None:
        losses = probability.float() * losses - (1.0 - probability.float()) * F.logsigmoid(-logit)
    if weight is not None:
        losses = losses * weight.float()
    return PairwiseLoss(
        loss=losses.sum() / denominator,
        correct_sum=(difference > 0).sum(),
        difference_sum=difference.detach().sum(),
    )


def centering_loss(chosen: Tensor, rejected: Tensor, *, denominator: Denominator) -> Tensor:
    """``(chosen + rejected)^2``: keeps scores near 0, as no pairwise loss does (arXiv:2312.09244)."""
    return (chosen.float() + rejected.float()).square().sum() / denominator


def sft_anchor_loss(logprobs: Tensor, mask: Tensor, *, denominator: Denominator) -> Tensor:
    """Cross-entropy on demonstrations, mixed into PPO to keep what SFT taught (arXiv:2203.02155, eq. 2).

    Args:
        logprobs: ``(batch, response)`` of the demonstrated tokens.
        mask: ``(batch, response)`` bool, the tokens to learn.
        denominator: global number of such tokens.
    """
    return -masked_mean(logprobs, mask, denominator=denominator)


def _surrogates(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (log-ratio, advantages, plain loss, clipped loss) per token, all 0 in masked slots."""
    if not (0 < clip_low < 1 and clip_high > 0):
        raise ValueError(f"need 0 < clip_low < 1 and clip_high > 0, got clip_low={clip_low}, clip_high={clip_high}")
    advantages = fill_masked(advantages.detach(), response_mask)
    log_ratio = masked_log_ratio(logprobs, old_logprobs.detach(), response_mask)
    ratio = log_ratio.exp()
    near_one = ratio.clamp(1 - clip_low, 1 + clip_high)
    return log_ratio, advantages, -ratio * advantages, -near_one * advantages


def _policy_loss(
    losses: Tensor, clipped: Tensor, log_ratio: Tensor, mask: Tensor, denominator: Denominator
) -> PolicyLoss:
    log_ratio = log_ratio.detach()
    deviation = log_ratio.expm1()  # ratio - 1, without cancellation near 1
    return PolicyLoss(
        loss=masked_mean(losses, mask, denominator=denominator),
        clip_fraction_sum=clipped.sum(),
        ratio_sum=masked_sum(log_ratio.exp(), mask),
        ratio_deviation_max=deviation.abs().amax(),
        ratio_deviation_sum=masked_sum(deviation.abs(), mask),
        approx_kl_sum=(deviation - log_ratio).sum(),
        num_tokens=mask.sum(),
    )


def _squared_error(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    return (fill_masked(values, mask) - fill_masked(returns.detach(), mask)).square()


def _value_loss(
    losses: Tensor, clipped: Tensor, squared_error: Tensor, mask: Tensor, denominator: Denominator
) -> ValueLoss:
    return ValueLoss(
        loss=0.5 * masked_mean(losses, mask, denominator=denominator),
        clip_fraction_sum=clipped.sum(),
        squared_error_sum=squared_error.detach().sum(),
        num_tokens=mask.sum(),
    )


def _capped_exp(log_weight: Tensor, cap: float) -> Tensor:
    if not cap > 0:
        raise ValueError(f"cap must be above 0, got {cap}")
    return at_least_float32(log_weight).exp().clamp(max=cap)
