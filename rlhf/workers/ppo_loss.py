"""The loss of one micro-batch of PPO: policy, value, KL and entropy terms as configured, and their running sums."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    """Sums over a step's micro-batches of one rank; read out once.

    Attributes:
        ratio_first / ratio_first_mean: largest and mean |ratio - 1| of a step's first micro-batch.
        mismatch_max: over the first update, see ``compare``.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    ratio_first: float = 0.0
    ratio_first_mean: float = 0.0
    mismatch_max: float = 0.0
    norms: list[dict[str, float] | None] = field(default_factory=list)
    """Per update, each role's before clipping; None for one that was skipped."""

    def add(self, **values: Tensor | float) -> None:
        """Adds to the sums, each of them where its values are: a GPU is waited for when they are read out."""
        for name, value in values.items():
            found = torch.as_tensor(value).detach()
            self.sums[name] = self.sums.get(name, torch.zeros((), device=found.device)) + found

    def start(self, policy: losses.PolicyLoss) -> None:
        """Notes how far a step's first micro-batch is from ratios of 1; a GPU is waited for."""
        mean = policy.ratio_deviation_sum / policy.num_tokens.clamp(min=1)
        self.ratio_first, self.ratio_first_mean = torch.stack([policy.ratio_deviation_max, mean]).tolist()

    def compare(self, part: Experience, outputs: Outputs) -> None:
        """Counts a micro-batch of a step's first update, whose policy is the one that drew it: what the trainer says of
        its tokens beside what the rollout engine has reported, and the entropy."""
        mask, here, drawn = part.response_mask, outputs.logprobs.detach(), part.behaviour_logprobs
        drift = (drawn - here).abs().masked_fill(~mask, 0.0)
        self.mismatch_max = max(self.mismatch_max, float(drift.max()))
        self.add(
            mismatch_mean=drift.sum(),
            mismatch_kl=kl_k3(drawn, here, mask).sum(),
            entropy=outputs.entropies.detach().masked_fill(~mask, 0.0).sum(),
            first_tokens=mask.sum(),
        )

    @property
    def num_skipped(self) -> int:
        """Updates whose gradient was not finite."""
        return self.norms.count(None)

    def mean_norms(self) -> dict[str, float]:
        """Means over the updates before clipping: ``grad_norm`` of all roles together, ``grad_norm.ROLE`` of each."""
        return mean_norms([norms for norms in self.norms if norms is not None])


def mean_norms(norms: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over updates of the roles' norms: ``grad_norm`` of all together, ``grad_norm.ROLE`` of each."""
    made = max(1, len(norms))
    roles = sorted({role for one in norms for role in one})
    means = {f"grad_norm.{role}": sum(one[role] for one in norms) / made for role in roles}
    return {"grad_norm": sum(math.hypot(*one.values()) for one in norms) / made, **means}


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
    loss = policy.loss
    totals.add(
        policy_loss=policy.loss,
        clip_fraction=policy.clip_fraction_sum,
        ratio=policy.ratio_sum,
        approx_kl=kl_k3(part.old_logprobs, logprobs.detach(), mask).sum(),
        tokens=policy.num_tokens,
    )
    if config.kl.mode == "loss":
        term = losses.kl_loss_by_name(config.kl.estimator)(logprobs, part.ref_logprobs, mask, denominator=denominator)
        loss = loss + kl_coef * term
        totals.add(kl_loss=term)
    if cfg.entropy_coef > 0:
        loss = loss - cfg.entropy_coef * entropies.masked_fill(~mask, 0.0).sum() / denominator
    loss = policy_weight * loss
    return loss if values is None else loss + value_term(config, part, values, denominator, totals), policy


def value_term(config: PpoConfig, part: Experience, values: Tensor, denominator: float, totals: LearnTotals) -> Tensor:
    """The critic's part of the loss, ``loss.value_coef`` in it; ``values`` are (batch, response).

    Args:
        totals: gets the terms of this micro-batch.
    """
    cfg, mask = config.loss, part.response_mask
    if cfg.value_clip is None:
        value = losses.value_loss(values, part.returns, mask, denominator=denominator)
    else:
        clip = cfg.value_clip
        value = losses.clipped_value_loss(values, part.values, part.returns, mask, clip=clip, denominator=denominator)
    totals.add(value_loss=value.loss, value_clip_fraction=value.clip_fraction_sum)
    return cfg.value_coef * value.loss
