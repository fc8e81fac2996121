"""Sections that only PPO has: batch, KL, losses, advantages, demonstrations, roles."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlhf.config.base import Name, OnBadRow, Section
from rlhf.config.sources import FilesAlone


class PpoBatch(Section):
    """The batch words; everything else is derived by exact division."""

    prompts_per_step: int = Field(32, ge=1)
    """Prompts that are answered per step, over all rollout workers; a multiple of ``placement.num_rollout_workers``."""
    responses_per_prompt: int = Field(1, ge=1)
    """Responses drawn per prompt; ``grpo`` and ``rloo`` compare those of one prompt and need 2 or more."""
    minibatch_sequences: int = Field(32, ge=1)
    """Sequences per optimizer step, over all ranks; prompts x responses of a step must be a multiple of it."""
    microbatch_sequences_per_gpu: int = Field(8, ge=1)
    """Sequences per pass of a rank: lower needs less memory, and learns the same."""
    microbatch_tokens_per_gpu: int | None = Field(None, ge=1)
    """Prompt and response tokens of a pass; set, it takes the place of the number of sequences (packed passes only)."""
    epochs: int = Field(4, ge=1)
    """Times that each step's responses are learned from (arXiv:1707.06347 alg. 1)."""

    @property
    def sequences_per_step(self) -> int:
        """Responses drawn per step."""
        return self.prompts_per_step * self.responses_per_prompt


class KlConfig(Section):
    """Distance from the reference policy."""

    mode: Literal["reward", "loss", "none"] = "reward"
    """Penalty per token in the reward, a term of the loss, or only measured."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """Per token, of d = log-ratio to the reference: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d. As a loss k2 has the
    gradient of the reverse KL, k3 that of the forward one, and k1 none (refused)."""
    coef: float = Field(0.05, ge=0)
    """Weight of the penalty per nat; with ``target`` where the adaptive coefficient begins."""
    target: float | None = Field(None, gt=0)
    """Nats per response; set it to adapt the coefficient (arXiv:1909.08593 sec. 2.2)."""
    horizon: float = Field(10_000.0, gt=0)
    """Sequences over which the adaptive coefficient corrects a full error; longer is slower (``target`` only)."""
    limit: float | None = Field(None, gt=0)
    """Nats per response above which the run stops with an error."""


class PpoLossConfig(Section):
    """Losses of PPO (arXiv:1707.06347)."""

    clip_low: float = Field(0.2, gt=0, lt=1)
    """The ratio of new to old probability counts down to 1 - clip_low (arXiv:1707.06347 eq. 7)."""
    clip_high: float = Field(0.2, gt=0)
    """It counts up to 1 + clip_high; above ``clip_low`` rare tokens can gain more (arXiv:2503.14476 sec. 3.1)."""
    dual_clip: float | None = Field(None, gt=1)
    """Bounds the loss of a negative advantage A at -dual_clip x A; usually 3 (arXiv:1912.09729 sec. 3). null: not
    bounded."""
    value_clip: float | None = Field(0.2, gt=0)
    """How far a value may move from the step's first one before its loss stops falling, in units of the score. null:
    plain squared error."""
    value_coef: float = Field(0.1, ge=0)
    """Weight of the critic's loss, half the squared error per token, beside the policy's."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the mean entropy per token, in nats, as a bonus that keeps the policy from collapsing; 0: none."""
    critic_warmup_steps: int = Field(0, ge=0)
    """First steps in which only the critic learns: advantages from an untrained critic move the policy at random."""
    epoch_kl_stop: float | None = Field(None, gt=0)
    """Mean per-token k3 between old and new policy above which the step's remaining epochs are left out."""
    old_logprobs: Literal["trainer", "rollout"] = "trainer"
    """Whose log-probs of the drawn tokens the ratio compares with. ``rollout`` takes those that the rollout engine has
    reported and saves the policy a quarter of judging; trainer and engine are then compared on the first step and on
    each further step's first update only (ADR 24)."""
    importance_cap: float | None = Field(None, gt=0)
    """Weigh every token by min(trainer / sampler probability, cap); needed where rollouts run ahead."""
    entropy_floor: float | None = Field(None, gt=0)
    """Nats per token below which the run stops: the policy has collapsed."""


class AdvantageConfig(Section):
    """How scores become advantages."""

    method: Literal["gae", "grpo", "rloo", "reinforce_plus_plus"] = "gae"
    """``gae`` needs a critic (arXiv:1506.02438); the others need none: ``grpo`` compares with the prompt's mean score
    (arXiv:2402.03300), ``rloo`` with the mean of its other responses (arXiv:2402.14740), ``reinforce_plus_plus``
    whitens returns over the batch (arXiv:2501.03262)."""
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount per token, for gae and reinforce_plus_plus; 1: none."""
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's lambda: 1 trusts what was scored, 0 the critic's next value (arXiv:1506.02438 eq. 16); gae only."""
    whiten: bool = True
    """Mean 0, deviation 1 over the step's tokens; for gae (reinforce_plus_plus always, grpo and rloo never)."""
    grpo_scale_by_std: bool = True
    """Divide by the standard deviation of the prompt's scores; false leaves that bias out (arXiv:2503.20783). grpo
    only."""


class PtxConfig(Section):
    """Demonstrations that anchor the policy: their log-likelihood joins the loss (PPO-ptx, arXiv:2203.02155 eq. 2)."""

    train: FilesAlone
    """Files or globs of demonstrations."""
    format: str = "auto"
    """Format of the rows' columns, such as ``messages`` or ``alpaca``; ``auto`` detects it per file."""
    on_bad_row: OnBadRow = "refuse"
    """A row that does not fit stops the run, or is left out and listed in ``ptx.dropped.jsonl``."""
    coef: float = Field(1.0, gt=0)
    """Of the mean negative log-likelihood per assistant token; the policy loss beside it is a mean per token, too."""
    sequences_per_update: int = Field(8, ge=1)
    """Per optimizer step, over all ranks."""
    max_sequence_tokens: int = Field(512, ge=8)
    """Longest demonstration, in tokens."""
    on_long_row: Literal["refuse", "drop", "truncate"] = "refuse"
    """What becomes of a longer one: the run stops, it is left out, or its end is cut off."""


class RolesConfig(Section):
    """Which roles stand on the policy's base (ADR 17, ADR 19)."""

    layout: Literal["auto", "shared", "separate"] = "auto"
    """Reward models: ``auto`` lets the first that has the policy's base and chat format be an adapter on it and gives
    the others worker processes of their own; ``shared`` refuses a run that would need any; ``separate`` gives all their
    own."""
    critic: Name | None = None
    """A finished reward run or a base model on which the critic stands, in training ranks of its own
    (``placement.num_critic_ranks``); it must read the policy's tokens. None: an adapter on the policy's base."""
    recompute_feed_forward: bool = False
    """Gate and up of every feed-forward are made again in backward instead of kept: a third of the activations for a
    quarter more arithmetic; whole layers (``model.gradient_checkpointing``) keep less and cost half as much again."""
