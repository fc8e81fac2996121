"""PPO's config."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlhf.config.base import OnBadRow
from rlhf.config.common import StageConfig, exact_division
from rlhf.config.model import LoraConfig, OptimConfig, TelemetryConfig
from rlhf.config.ppo_parts import AdvantageConfig, KlConfig, PpoBatch, PpoLossConfig, PtxConfig, RolesConfig
from rlhf.config.rollout import RolloutConfig
from rlhf.config.scores import ScoreConfig, ScoreSource
from rlhf.config.sources import Mixed, why_not_mixed

MAX_KL_ERROR = 0.2
"""Relative error at which an adaptive KL controller clips (arXiv:1909.08593 sec. 2.2)."""


class PpoOptimConfig(OptimConfig):
    """AdamW with PPO's own defaults; as fields, so that a section that names other keys keeps them."""

    learning_rate: float = Field(3e-6, gt=0)
    """Of the policy's AdamW, after warm-up (``critic_learning_rate`` is the critic's)."""
    eps: float = Field(1e-5, gt=0)
    """Added to the root of Adam's second moment; PPO's own is larger than AdamW's usual 1e-8."""


class PpoTelemetryConfig(TelemetryConfig):
    """Where numbers go, and whether a profile is written."""

    profile: bool = False
    """Record where every step's time and memory go: profile/ in the run directory, and a table at the end."""


class PpoConfig(StageConfig):
    """PPO on Ray rollouts, a shared frozen base and LoRA adapters."""

    stage: Literal["ppo"] = "ppo"
    """Which stage the file is for; a file says it, the command line repeats it."""
    prompts: Mixed
    """Files or globs; or a list of sources, each with ``files`` and its own ``format``, ``limit`` and ``weight``."""
    prompt_format: str = "auto"
    """Format of ``prompts``, such as ``messages`` or ``alpaca``; ``auto`` detects it per file."""
    on_bad_row: OnBadRow = "refuse"
    """Of the prompts: a row that does not fit stops the run, or is left out and listed in ``dropped.jsonl``."""
    scores: tuple[ScoreSource, ...] = Field(min_length=1)
    """What is learned: reward runs, Python functions and servers; a response's score is their sum, each times its
    ``weight``."""
    roles: RolesConfig = RolesConfig()
    lora: LoraConfig = LoraConfig()
    """Adapter of the critic, and of the policy when ``model.name`` has none yet."""
    policy_weights: Literal["adapter", "full"] = "adapter"
    """``full`` trains a copy of the whole model; reference, critic and reward model stay adapters on the frozen one."""
    optim: PpoOptimConfig = PpoOptimConfig()
    critic_learning_rate: float | None = Field(None, gt=0)
    """None: the policy's."""
    critic_max_grad_norm: float | None = Field(None, gt=0)
    """Gradient norm at which the critic's own gradient is clipped; None: as high as ``optim.max_grad_norm``, at which
    the policy's own is."""
    rollout: RolloutConfig = RolloutConfig()
    batch: PpoBatch = PpoBatch()
    kl: KlConfig = KlConfig()
    loss: PpoLossConfig = PpoLossConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    score: ScoreConfig = ScoreConfig()
    ptx: PtxConfig | None = None
    """Demonstrations that anchor the policy; null: none."""
    telemetry: PpoTelemetryConfig = PpoTelemetryConfig()
    num_steps: int = Field(100, ge=1)
    """Steps of the run, each: draw, judge, learn, hand the new weights over."""
    sync_chunk_bytes: int = Field(2**28, ge=1)
    """Largest piece in which a fully trained policy travels to the rollout workers; one tensor is never cut."""
    sync_between_hosts: Literal["gloo", "store"] = "gloo"
    """How the pieces get to other hosts: broadcast in a process group with one member per host, or asked for from
    Ray's object store by every host. A group that fails is replaced; the version goes by the store meanwhile."""
    sync_tolerance: float | None = Field(None, gt=0)
    """Largest |log-prob difference| of the canary prompt between trainer and rollout, and of policy and reference at
    the start. None: what rounding leaves, 1e-4 in float32, in bfloat16 0.2 on average and 2 at most (ADR 28)."""
    ratio_tolerance: float | None = Field(None, gt=0)
    """Largest |ratio - 1| on a step's first micro-batch; None: likewise."""
    mismatch_limit: float = Field(0.5, gt=0)
    """Largest mean |log-prob difference| between rollout engine and trainer on one version's own tokens."""
    sample_every_steps: int = Field(10, ge=1)
    """Steps between samples of prompts and responses, kept in the run directory for board and report."""

    @property
    def uses_critic(self) -> bool:
        """Only GAE needs values."""
        return self.advantage.method == "gae"

    @property
    def critic_shares_base(self) -> bool:
        """The critic is an adapter on the policy's base."""
        return self.uses_critic and self.roles.critic is None

    @property
    def critic_is_apart(self) -> bool:
        """The critic has a base, and ranks, of its own."""
        return self.uses_critic and self.roles.critic is not None

    @property
    def placed_roles(self) -> tuple[str, ...]:
        """A critic with ranks of its own needs places, too."""
        return ("rank", "rollout_worker", *(["critic_rank"] if self.critic_is_apart else []))

    @property
    def doubtful_roles(self) -> tuple[str, ...]:
        """Scorer workers are started only for a reward model that does not stand on the policy's base."""
        return ("scorer_worker",)

    @property
    def minibatches(self) -> int:
        """Optimizer steps per epoch."""
        return self.batch.sequences_per_step // self.batch.minibatch_sequences

    def microbatches_per_rank(self) -> int:
        """Micro-batches per optimizer step on one rank, where they hold a number of sequences.

        Raises:
            ValueError: the sequences do not divide evenly.
        """
        return exact_division(
            self.batch.minibatch_sequences,
            self.batch.microbatch_sequences_per_gpu,
            self.placement.num_ranks,
            "minibatch_sequences",
        )

    @model_validator(mode="after")
    def _rules(self) -> PpoConfig:
        named = None if self.prompt_format == "auto" else self.prompt_format
        if reason := why_not_mixed(self.prompts, "prompts", {"prompt_format": named}):
            raise ValueError(reason)
        batch, n = self.batch, self.batch.sequences_per_step
        if n % batch.minibatch_sequences:
            raise ValueError(
                f"batch.prompts_per_step x batch.responses_per_prompt = {n} must be a multiple of "
                f"batch.minibatch_sequences={batch.minibatch_sequences}"
            )
        if batch.prompts_per_step % self.placement.num_rollout_workers:
            raise ValueError(
                f"batch.prompts_per_step={batch.prompts_per_step} must be a multiple of "
                f"placement.num_rollout_workers={self.placement.num_rollout_workers}"
            )
        self._check_microbatches()
        if self.advantage.method in ("grpo", "rloo") and batch.responses_per_prompt < 2:
            raise ValueError(f"advantage.method={self.advantage.method} compares responses of one prompt: "
                             "set batch.responses_per_prompt to 2 or more")  # fmt: skip
        if self.advantage.method == "reinforce_plus_plus" and not self.advantage.whiten:
            raise ValueError(
                "advantage.whiten=false has no meaning for advantage.method=reinforce_plus_plus, which is whitened by "
                "definition: leave it true, or use advantage.method=gae"
            )
        if self.score.whiten_rewards and self.advantage.method in ("grpo", "rloo"):
            raise ValueError(
                f"score.whiten_rewards=true has no meaning for advantage.method={self.advantage.method}, which takes "
                "scores, not rewards: leave it false"
            )
        self._check_critic()
        self._check_halves()
        if self.kl.mode == "loss" and self.kl.estimator == "k1":
            raise ValueError("kl.estimator=k1 has zero expected gradient as a loss: use k2 (reverse KL) or k3")
        if self.kl.target is not None and self.kl.mode == "none":
            raise ValueError("kl.target adapts kl.coef, which kl.mode=none never uses: set kl.mode=reward or loss")
        self._check_horizon()
        if self.kl.mode == "reward" and self.advantage.method in ("grpo", "rloo"):
            raise ValueError(f"advantage.method={self.advantage.method} works on scores per response: "
                             "set kl.mode=loss with kl.estimator=k2, or kl.mode=none")  # fmt: skip
        if self.rollout.top_p < 1 or self.rollout.top_k:
            raise ValueError("rollout.top_p and rollout.top_k must stay off (1 and 0) in PPO: truncated sampling draws "
                             "from another distribution than the one whose log-probabilities are trained")  # fmt: skip
        self._check_old_logprobs()
        if self.rollout.overlap and self.loss.importance_cap is None:
            raise ValueError(f"rollout.overlap={self.rollout.overlap} trains on tokens of an older policy: "
                             "set loss.importance_cap (2.0 is usual)")  # fmt: skip
        if self.ptx is not None and self.ptx.sequences_per_update % self.placement.num_ranks:
            raise ValueError(
                f"ptx.sequences_per_update={self.ptx.sequences_per_update} must be a multiple of "
                f"placement.num_ranks={self.placement.num_ranks}"
            )
        if self.policy_weights == "full" and self.model.quantization != "none":
            raise ValueError(
                f"policy_weights=full cannot train a base in {self.model.quantization}: "
                "set model.quantization=none, or policy_weights=adapter"
            )
        self._check_vllm()
        if self.lora.dropout > 0:
            raise ValueError("lora.dropout must be 0 in PPO: the first ratio would not be 1")
        return self

    def _check_vllm(self) -> None:
        rollout, gpus = self.rollout, self.placement.gpus_per_rollout_worker
        if rollout.engine != "vllm":
            return
        if self.policy_weights == "full":
            raise ValueError(
                "policy_weights=full needs rollout.engine=transformers: vLLM is given adapters, never whole weights"
            )
        parts = rollout.tensor_parallel
        if parts > 1 and gpus not in (None, 0, parts):
            raise ValueError(
                f"placement.gpus_per_rollout_worker={gpus:g} does not fit rollout.tensor_parallel={parts}, which wants "
                f"a GPU for each part of the weights: set it to {parts}, or leave it out (0: on CPUs)"
            )
        if gpus is not None and 0 < gpus < 1 and "memory_share" not in rollout.model_fields_set:
            raise ValueError(
                f"rollout.memory_share={rollout.memory_share:g}, the default, is more of a GPU than is free beside "
                f"those that share it (placement.gpus_per_rollout_worker={gpus:g}): set it, e.g. to {0.8 * gpus:.2g}"
            )

    def _check_old_logprobs(self) -> None:
        if self.loss.old_logprobs == "trainer":
            return
        if self.rollout.overlap:
            raise ValueError(
                f"loss.old_logprobs=rollout needs rollout.overlap=0, not {self.rollout.overlap}: clipping would count "
                "an older policy's distance as this step's; leave it at trainer"
            )
        if self.loss.importance_cap is not None:
            raise ValueError(
                "loss.old_logprobs=rollout makes every importance weight 1: leave loss.importance_cap out, or "
                "loss.old_logprobs at trainer"
            )

    def _check_halves(self) -> None:
        if self.roles.recompute_feed_forward and self.engine.zero_stage == 3:
            raise ValueError(
                "roles.recompute_feed_forward=true needs engine.zero_stage below 3: where weights are gathered layer "
                "by layer, nothing runs in halves; model.gradient_checkpointing=true does it there"
            )

    def _check_horizon(self) -> None:
        shortest = MAX_KL_ERROR * self.batch.sequences_per_step
        if self.kl.target is not None and self.kl.horizon <= shortest:
            raise ValueError(
                f"kl.horizon={self.kl.horizon:g} must be above {MAX_KL_ERROR:g} x {self.batch.sequences_per_step} "
                f"sequences per step = {shortest:g}, or one step could make the coefficient negative: set it higher"
            )

    def _check_critic(self) -> None:
        asked = {
            "loss.critic_warmup_steps": self.loss.critic_warmup_steps or None,
            "roles.critic": self.roles.critic,
            "critic_learning_rate": self.critic_learning_rate,
            "critic_max_grad_norm": self.critic_max_grad_norm,
        }
        for key, value in asked.items():
            if value is not None and not self.uses_critic:
                raise ValueError(
                    f"{key}={value!r} needs advantage.method=gae: {self.advantage.method} has no critic; leave it out"
                )
        if self.roles.critic is None:
            return
        placement, batch = self.placement, self.batch
        if placement.layout == "colocated" and placement.gpus_per_rank and placement.gpus_per_critic_rank is None:
            raise ValueError(
                "roles.critic needs ranks of its own, and placement.layout=colocated shares GPUs by fractions: set "
                "placement.gpus_per_critic_rank beside gpus_per_rank and gpus_per_rollout_worker, e.g. 0.4, 0.3 and "
                "0.3 (0: on CPUs)"
            )
        ranks = placement.num_critic_ranks
        if batch.microbatch_tokens_per_gpu is None:
            size = batch.microbatch_sequences_per_gpu
            exact_division(batch.minibatch_sequences, size, ranks, "minibatch_sequences", "num_critic_ranks")
        elif batch.minibatch_sequences % ranks:
            raise ValueError(
                f"batch.minibatch_sequences={batch.minibatch_sequences} must be a multiple of "
                f"placement.num_critic_ranks={ranks}"
            )

    def _check_microbatches(self) -> None:
        budget, ranks = self.batch.microbatch_tokens_per_gpu, self.placement.num_ranks
        if budget is None:
            self.microbatches_per_rank()
            return
        if self.ptx is not None and budget < self.ptx.max_sequence_tokens:
            raise ValueError(
                f"batch.microbatch_tokens_per_gpu={budget} must hold one demonstration of "
                f"ptx.max_sequence_tokens={self.ptx.max_sequence_tokens}"
            )
        longest = self.rollout.max_prompt_tokens + self.rollout.max_response_tokens
        if budget < longest:
            raise ValueError(
                f"batch.microbatch_tokens_per_gpu={budget} must hold one sequence of rollout.max_prompt_tokens + "
                f"rollout.max_response_tokens = {longest}"
            )
        if self.batch.minibatch_sequences % ranks:
            raise ValueError(
                f"batch.minibatch_sequences={self.batch.minibatch_sequences} must be a multiple of "
                f"placement.num_ranks={ranks}"
            )
