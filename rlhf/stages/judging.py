"""From scores and log-probabilities to advantages: tensors of the whole step, in the driver."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.algos import advantages as adv
from rlhf.algos.finite import require_finite
from rlhf.algos.kl import kl_k1, kl_k2, kl_k3
from rlhf.algos.rewards import penalised_rewards, whiten_rewards_keep_mean
from rlhf.config import PpoConfig
from rlhf.errors import DataError
from rlhf.rollout.experience import Experience

ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


@dataclass(frozen=True)
class Judged:
    """A step's advantages with what is reported about them.

    Attributes:
        batch: the experience, advantages and returns filled in; rows that have left the step keep no response token.
        rewards: (batch, response).
        explained_variance: of the returns by the critic, None without one.
    """

    batch: Experience
    rewards: Tensor
    explained_variance: float | None

    @property
    def rows(self) -> Tensor:
        """(batch,) bool: the rows that the step learns from."""
        return self.batch.response_mask.any(dim=1)


def compute_advantages(
    batch: Experience,
    scores: Tensor,
    config: PpoConfig,
    kl_coef: float,
    group_ids: Tensor,
    scored: Tensor | None = None,
) -> Judged:
    """Advantages by the configured method, whitened over the whole batch where asked.

    Args:
        batch: with old and reference log-probs (and values for GAE).
        scores: (batch,) after clipping and the missing-EOS rule.
        kl_coef: of the per-token penalty; used when ``kl.mode`` is ``reward``.
        group_ids: (batch,) which prompt each row answers.
        scored: (batch,) bool, the rows that have a score; the others leave ``response_mask``, so that they count
            neither in a mean nor in a gradient. By default all have one.

    Raises:
        DataError: rloo has no two rows of one group left.
        NumericsError: a score, log-prob or value of a kept row is not finite.
    """
    method = config.advantage.method
    if scored is not None:
        scored = _with_company(scored, group_ids) if method == "rloo" else scored
        if not bool(scored.any()):
            raise DataError("no two responses to one prompt have a score, and rloo compares such; see the driver's log")
        batch = batch.with_judgement(response_mask=batch.response_mask & scored[:, None])
        scores = scores.masked_fill(~scored, 0.0)  # finite; the mask keeps these rows out of every mean
    _require_finite(batch, scores)
    mask = batch.response_mask
    coef = kl_coef if config.kl.mode == "reward" else 0.0
    rewards = penalised_rewards(
        scores, batch.old_logprobs, batch.ref_logprobs, mask, kl_coef=coef, kl=ESTIMATORS[config.kl.estimator]
    )
    if config.score.whiten_rewards:
        rewards = whiten_rewards_keep_mean(rewards, mask)
    explained = None
    returns = torch.zeros_like(rewards)
    if method == "gae":
        found = adv.gae(rewards, batch.values, mask, gamma=config.advantage.gamma, lam=config.advantage.lam)
        advantages, returns = found.advantages, found.returns
        explained = float(adv.explained_variance(batch.values, returns, mask))
    elif method in ("grpo", "rloo"):
        rows = slice(None) if scored is None else scored.nonzero().flatten()
        within, of = (scores[rows], group_ids[rows], mask[rows]), config.advantage
        advantages = torch.zeros_like(rewards)
        advantages[rows] = (
            adv.rloo_advantages(*within)
            if method == "rloo"
            else adv.grpo_advantages(*within, scale_by_std=of.grpo_scale_by_std)
        )
    else:
        advantages = adv.reinforce_plus_plus_advantages(rewards, mask, config.advantage.gamma)
    if config.advantage.whiten and method == "gae":
        advantages = adv.whiten_advantages(advantages, mask)
    return Judged(batch.with_judgement(advantages=advantages, returns=returns), rewards, explained)


def row_means(judged: Judged, kl: Tensor) -> dict[str, float]:
    """What the rows of a step are like, over those that it learns from.

    Args:
        kl: (batch,) nats per response, from the reference.
    """
    batch, rows = judged.batch, judged.rows
    return {
        "reward_mean": float(judged.rewards.sum(dim=1)[rows].mean()),
        "kl": float(kl[rows].mean()),
        "kl_max": float(kl[rows].max()),
        "response_tokens_mean": float(batch.response_mask.sum(dim=1)[rows].float().mean()),
        "eos_rate": float(batch.finished[rows].float().mean()),
    }


def _with_company(scored: Tensor, group_ids: Tensor) -> Tensor:
    """Rows with a score in whose group another row has one too: rloo compares with the others."""
    groups, counts = torch.unique(group_ids[scored], return_counts=True)
    return scored & torch.isin(group_ids, groups[counts > 1])


def _require_finite(batch: Experience, scores: Tensor) -> None:
    require_finite("the score", scores)
    named = {"old log-prob": batch.old_logprobs, "reference log-prob": batch.ref_logprobs, "value": batch.values}
    for name, tensor in named.items():
        if tensor is not None:
            require_finite(f"the {name}", tensor, batch.response_mask)
