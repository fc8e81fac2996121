"""The loss of one micro-batch of PPO: policy, value, KL and entropy terms as configured, and their running sums."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf.algos import losses
from rlhf.algos.kl import kl_k3
from rlhf.algos.minibatch import MinibatchPlan
from rlhf.config import PpoConfig
from rlhf.rollout.experience import Experience


@dataclass
class LearnTotals:
    """Sums over a step's micro-batches of one rank; read out once."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    ratio_first: float = 0.0
    grad_norms: list[dict[str, float]] = field(default_factory=list)
    """By role, one per update that was made."""
    num_skipped: int = 0

    def add(self, **values: Tensor | float) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, torch.zeros(())) + torch.as_tensor(value).detach().cpu()

    def mean_norms(self) -> dict[str, float]:
        """Means over the updates before clipping: ``grad_norm`` of all roles together, ``grad_norm.ROLE`` of each."""
        made = max(1, len(self.grad_norms))
        roles = {role for norms in self.grad_norms for role in norms}
        means = {f"grad_norm.{role}": sum(norms[role] for norms in self.grad_norms) / made for role in sorted(roles)}
        return {"grad_norm": sum(math.hypot(*norms.values()) for norms in self.grad_norms) / made, **means}


@dataclass(frozen=True)
class Demonstrations:
    """What anchors the coming updates (arXiv:2203.02155 eq. 2).

    Attributes:
        batch: sequences whose ``response_mask`` keeps the tokens to learn.
        plans: for each update, which of them are read by which rank in which pass.
        coef: of their mean negative log-likelihood per token.
    """

    batch: Experience
    plans: list[MinibatchPlan]
    coef: float


@dataclass(frozen=True)
class Outputs:
    """What the training pass gives: log-probs and entropies (batch, response), values likewise or None."""

    logprobs: Tensor
    entropies: Tensor
    values: Tensor | None


def ppo_loss(
    config: PpoConfig,
    part: Experience,
    outputs: Outputs,
    denominator: float,
    kl_coef: float,
    policy_weight: float,
    totals: LearnTotals,
) -> tuple[Tensor, losses.PolicyLoss]:
    """Sums over the micro-batch's tokens divided by the minibatch's global token count.

    Args:
        policy_weight: 0 while only the critic learns.
        totals: gets the terms of this micro-batch.
    """
    cfg, mask = config.loss, part.response_mask
    logprobs, entropies, values = outputs.logprobs, outputs.entropies, outputs.values
    clip = {"clip_low": cfg.clip_low, "clip_high": cfg.clip_high, "denominator": denominator}
    if cfg.dual_clip is None:
        policy = losses.ppo_policy_loss(logprobs, part.old_logprobs, part.advantages, mask, **clip)
    else:
        policy = losses.ppo_dual_clip_loss(
            logprobs, part.old_logprobs, part.advantages, mask, dual_clip=cfg.dual_clip, **clip
        )
    loss, value_term = policy.loss, torch.zeros((), device=mask.device)
    totals.add(
        policy_loss=policy.loss,
        clip_fraction=policy.clip_fraction_sum,
        ratio=policy.ratio_sum,
        approx_kl=kl_k3(part.old_logprobs, logprobs.detach(), mask).sum(),
        tokens=policy.num_tokens,
    )
    if values is not None:
        if cfg.value_clip is None:
            value = losses.value_loss(values, part.returns, mask, denominator=denominator)
        else:
            value = losses.clipped_value_loss(
                values, part.values, part.returns, mask, clip=cfg.value_clip, denominator=denominator
            )
        value_term = cfg.value_coef * value.loss
        totals.add(value_loss=value.loss, value_clip_fraction=value.clip_fraction_sum)
    if config.kl.mode == "loss":
        term = losses.kl_loss_by_name(config.kl.estimator)(logprobs, part.ref_logprobs, mask, denominator=denominator)
        loss = loss + kl_coef * term
        totals.add(kl_loss=term)
    if cfg.entropy_coef > 0:
        loss = loss - cfg.entropy_coef * entropies.masked_fill(~mask, 0.0).sum() / denominator
    return policy_weight * loss + value_term, policy
