"""Losses of direct preference optimization on differences of log-ratios, for soft labels and weighted pairs.

A response's implicit reward is ``beta * (log pi(y|x) - log ref(y|x))``, a sum over its tokens (arXiv:2305.18290 eq. 5,
but for a constant of the prompt). The logistic loss on it (eq. 7) is ``losses.pairwise_reward_loss``: a policy is its
own reward model. Here are the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.algos.losses import Denominator


def hinge_preference_loss(
    difference: Tensor, *, probability: Tensor, weight: Tensor, denominator: Denominator
) -> Tensor:
    """``max(0, 1 - difference)``, in float32: a pair that is told apart by 1 teaches nothing more (arXiv:2305.10425).

    Args:
        difference: ``(n,)``, implicit reward of chosen minus that of rejected.
        probability: ``(n,)`` in [0, 1], the share of annotators who agree that chosen is better.
        weight: ``(n,)``, how much each pair counts.
        denominator: global number of pairs (or sum of weights).
    """
    won, lost = torch.relu(1.0 - difference.float()), torch.relu(1.0 + difference.float())
    return _weighed(won, lost, probability, weight) / denominator


def ipo_preference_loss(
    difference: Tensor, *, beta: float, probability: Tensor, weight: Tensor, denominator: Denominator
) -> Tensor:
    """``(difference - 1 / (2 beta))^2``, in float32: a goal that is never infinite (arXiv:2310.12036 eq. 17).

    Args:
        difference: ``(n,)``, log-ratio per token of chosen minus that of rejected; sums would ask more of longer
            answers.
        beta: tau of the paper.
        probability / weight / denominator: as in ``hinge_preference_loss``.
    """
    goal = 1.0 / (2.0 * beta)
    won, lost = (difference.float() - goal).square(), (difference.float() + goal).square()
    return _weighed(won, lost, probability, weight) / denominator


def robust_preference_loss(
    difference: Tensor, *, label_smoothing: float, probability: Tensor, weight: Tensor, denominator: Denominator
) -> Tensor:
    """The logistic loss without the bias of labels that are flipped at random, in float32 (arXiv:2403.00409).

    Args:
        difference: ``(n,)``, implicit reward of chosen minus that of rejected.
        label_smoothing: share of flipped labels, in [0, 0.5).
        probability / weight / denominator: as in ``hinge_preference_loss``.
    """
    logistic = torch.nn.functional.softplus(-difference.float())
    flipped = torch.nn.functional.softplus(difference.float())
    kept, rest = 1.0 - label_smoothing, 1.0 - 2.0 * label_smoothing
    won = (kept * logistic - label_smoothing * flipped) / rest
    lost = (kept * flipped - label_smoothing * logistic) / rest
    return _weighed(won, lost, probability, weight) / denominator


def _weighed(won: Tensor, lost: Tensor, probability: Tensor, weight: Tensor) -> Tensor:
    """Sum over pairs of the expected loss under the votes."""
    p = probability.float()
    return ((p * won + (1.0 - p) * lost) * weight.float()).sum()
