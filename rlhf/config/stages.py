"""One frozen config per stage."""

from __future__ import annotations

from typing import Literal

from pydantic import AliasChoices, Field, model_validator

from rlhf.config.base import Name, OnBadRow, Section
from rlhf.config.common import PlacedSection, StageConfig, exact_division
from rlhf.config.model import LoraConfig, ModelConfig, NameOrModel, OptimConfig, PlacementConfig, TelemetryConfig
from rlhf.config.ppo import PpoConfig
from rlhf.config.ppo_parts import AdvantageConfig, KlConfig, PpoBatch, PpoLossConfig
from rlhf.config.recovery import RecoveryConfig
from rlhf.config.rollout import RolloutConfig, SamplingConfig
from rlhf.config.scores import RewardModelSource, ScoreConfig, ScoreSource
from rlhf.config.sources import FilesAlone, Mixed, is_of_store, sources_of, why_not_listed, why_not_mixed

__all__ = [
    "STAGES",
    "AdvantageConfig",
    "DataConfig",
    "DpoConfig",
    "EvaluateConfig",
    "KlConfig",
    "PairConfig",
    "PpoBatch",
    "PpoConfig",
    "PpoLossConfig",
    "RewardConfig",
    "RolloutConfig",
    "SampleConfig",
    "SamplingConfig",
    "ScoreConfig",
    "SftConfig",
    "StageConfig",
    "TrainerConfig",
]


class DataConfig(Section):
    """Rows to train on."""

    train: Mixed
    """Files or globs, or ``store:PROJECT[@vN]`` for rankings from the preference store; or a list of sources, each with
    ``files``, and ``format``, ``limit`` and ``weight`` of its own (``format`` here is then that of ``evaluation``)."""
    evaluation: FilesAlone | None = None
    """Held-out rows; without it ``eval_fraction`` of the prompts is held out by prompt hash."""
    eval_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the prompts, chosen by their hash and the seed, that is held out with all their rows; 0: none."""
    on_overlap: Literal["refuse", "drop"] = "refuse"
    """Prompts of ``evaluation`` that are in ``train``, too, stop the run, or their rows are left out of training and
    listed in ``dropped_overlap.jsonl``."""
    format: str = "auto"
    """Format of the rows' columns, such as ``messages`` or ``alpaca``; ``auto`` detects it per file."""
    on_bad_row: OnBadRow = "refuse"
    """A row that does not fit stops the run, or is left out and listed in ``dropped.jsonl``."""
    on_long_row: Literal["refuse", "drop", "truncate"] = "refuse"
    """What becomes of a row over ``max_sequence_tokens``: the run stops, it is left out (``long_rows.jsonl``), or it is
    cut: a demonstration's end, what stands before an answer that is compared."""
    limit: int | None = Field(None, ge=1)
    """At most this many good rows of ``train``, before any is held out; null: all."""
    max_sequence_tokens: int = Field(512, ge=8)
    """Longest row, prompt and response together, in tokens."""

    @model_validator(mode="after")
    def _sources_have_their_own(self) -> DataConfig:
        own_alone = self.evaluation is None or is_of_store(self.evaluation)  # no file is left that it could be of
        named = self.format if self.format != "auto" and own_alone else None
        if reason := why_not_mixed(self.train, "data.train", {"data.limit": self.limit, "data.format": named}):
            raise ValueError(reason)
        if named is not None and is_of_store(self.train):
            raise ValueError(f"data.format={named} has no meaning beside data.train={self.train}: leave it out")
        return self


class SftBatch(Section):
    """Rows per optimizer step; accumulation is derived by exact division."""

    minibatch_sequences: int = Field(32, ge=1)
    """Rows per optimizer step, over all ranks: a multiple of ``microbatch_sequences_per_gpu`` x
    ``placement.num_ranks``."""
    microbatch_sequences_per_gpu: int = Field(4, ge=1)
    """Rows per pass of a rank: lower needs less memory, and learns the same."""


class SftConfig(StageConfig):
    """Supervised fine-tuning on demonstrations."""

    stage: Literal["sft"] = "sft"
    """Which stage the file is for; a file says it, the command line repeats it."""
    data: DataConfig
    lora: LoraConfig | None = LoraConfig()
    """null: full fine-tuning."""
    optim: OptimConfig = OptimConfig()
    batch: SftBatch = SftBatch()
    num_epochs: float = Field(1.0, gt=0)
    """Times that every training row is seen; a fraction is a part of them."""
    max_steps: int | None = Field(None, ge=1)
    """Most optimizer steps, whatever ``num_epochs`` says; null: no bound."""
    packing: bool = False
    """Lay several short rows into one of ``data.max_sequence_tokens``, each reading only itself: fewer passes."""
    eval_every_steps: int = Field(50, ge=1)
    """Optimizer steps between evaluations on the held-out rows."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Evaluations without improvement before stopping; the best weights are restored."""

    @model_validator(mode="after")
    def _rules(self) -> SftConfig:
        _ = self.gradient_accumulation  # refuses uneven batches before any worker starts
        if self.model.quantization != "none" and self.lora is None:
            raise ValueError("model.quantization needs an adapter: set lora.r (4-bit base weights cannot be trained)")
        return self

    @property
    def gradient_accumulation(self) -> int:
        """Micro-batches per optimizer step and rank."""
        return exact_division(
            self.batch.minibatch_sequences,
            self.batch.microbatch_sequences_per_gpu,
            self.placement.num_ranks,
            "minibatch_sequences",
        )


class RewardBatch(Section):
    """Pairs per optimizer step."""

    minibatch_pairs: int = Field(32, ge=1)
    """Pairs per optimizer step, over all ranks: a multiple of ``microbatch_pairs_per_gpu`` x
    ``placement.num_ranks``."""
    microbatch_pairs_per_gpu: int = Field(8, ge=1)
    """Pairs, of two sequences each, per pass of a rank: lower needs less memory, and learns the same."""


class PreferenceDataConfig(DataConfig):
    """Preferences to train on; ``data.preferences`` is another word for ``data.train``."""

    train: Mixed = Field(validation_alias=AliasChoices("train", "preferences"))
    """Files or globs of preferences, or ``store:PROJECT[@vN]`` for rankings from the preference store; or a list of
    sources, each with ``files``, and ``format``, ``limit`` and ``weight`` of its own. ``data.preferences`` is another
    word for it."""

    @model_validator(mode="after")
    def _rankings_stand_alone(self) -> PreferenceDataConfig:
        if reason := why_not_listed(self.train, "data.train"):
            raise ValueError(reason)
        for number, source in enumerate(sources_of(self.train)):
            if is_of_store(source.files) and source.format != "auto":
                raise ValueError(
                    f"data.train.{number}.format={source.format} has no meaning beside files={source.files}: leave it "
                    "out"
                )
        if isinstance(self.evaluation, tuple) and any(map(is_of_store, self.evaluation)):
            raise ValueError("data.evaluation lists a store: among files: name it alone, data.evaluation=store:PROJECT")
        return self


class PairStage(StageConfig):
    """A stage that trains on pairs of responses."""

    data: PreferenceDataConfig
    lora: LoraConfig | None = LoraConfig()
    """null: full fine-tuning."""
    batch: RewardBatch = RewardBatch()
    num_epochs: float = Field(1.0, gt=0)
    """Times that every pair is seen; a fraction is a part of them."""
    max_steps: int | None = Field(None, ge=1)
    """Most optimizer steps, whatever ``num_epochs`` says; null: no bound."""
    eval_every_steps: int = Field(50, ge=1)
    """Optimizer steps between evaluations on the held-out pairs."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Evaluations without a lower held-out loss before stopping; the best weights are restored."""
    weight_by_prompt: bool = True
    """All pairs of one prompt weigh together 1."""
    annotator_weights: bool = False
    """Weight votes by the estimated reliability of their annotators (``store:`` data only)."""

    @model_validator(mode="after")
    def _pairs_can_be_learned(self) -> PairStage:
        _ = self.gradient_accumulation  # refuses uneven batches before any worker starts
        if self.model.quantization != "none" and self.lora is None:
            raise ValueError("model.quantization needs an adapter: set lora.r")
        for number, source in enumerate(sources_of(self.data.train)):
            if source.weight > 1 and self.weight_by_prompt:
                raise ValueError(
                    f"data.train.{number}.weight={source.weight:g} changes nothing with weight_by_prompt=true, where "
                    "all pairs of one prompt weigh together 1: set that to false, or the other sources' weights below 1"
                )
        return self

    @property
    def gradient_accumulation(self) -> int:
        """Micro-batches per optimizer step and rank."""
        return exact_division(
            self.batch.minibatch_pairs,
            self.batch.microbatch_pairs_per_gpu,
            self.placement.num_ranks,
            "minibatch_pairs",
        )


class RewardConfig(PairStage):
    """A reward model from pairwise preferences (arXiv:2203.02155 eq. 1)."""

    stage: Literal["reward"] = "reward"
    """Which stage the file is for; a file says it, the command line repeats it."""
    optim: OptimConfig = OptimConfig()
    use_margins: bool = True
    """The chosen score must win by the pair's ``margin``, where a row has one (arXiv:2307.09288 eq. 2)."""
    centering: float = Field(0.0, ge=0)
    """Coefficient of (score_chosen + score_rejected)^2."""
    normalize_on: str | None = None
    """Rows (any demonstration format) on which scores get mean 0, deviation 1; default: chosen and rejected rows."""


class DpoOptimConfig(OptimConfig):
    """Small steps: every pair pulls the policy away from its start."""

    learning_rate: float = Field(5e-6, gt=0)
    """AdamW's step size after warm-up."""


class DpoConfig(PairStage):
    """A policy straight from pairwise preferences, without a reward model or sampling (arXiv:2305.18290)."""

    stage: Literal["dpo"] = "dpo"
    """Which stage the file is for; a file says it, the command line repeats it."""
    lora: LoraConfig | None = LoraConfig()
    """null: full fine-tuning, beside a second copy of the model as the reference."""
    optim: DpoOptimConfig = DpoOptimConfig()
    beta: float = Field(0.1, gt=0)
    """How much staying close to the start is worth: the KL coefficient of the PPO run that this one stands for."""
    loss_type: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    """``sigmoid``: DPO's own; ``ipo`` aims at a difference per token; ``hinge``: SLiC's; ``robust`` counts on flips."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of pairs believed to be the wrong way round (``loss_type=robust`` only)."""

    @model_validator(mode="after")
    def _rules(self) -> DpoConfig:
        if self.lora is not None and self.lora.dropout:
            raise ValueError(
                f"lora.dropout={self.lora.dropout:g} would make the policy differ from its own start by chance, "
                "and dpo learns from that difference alone: set it to 0"
            )
        if (self.loss_type == "robust") != (self.label_smoothing > 0):
            raise ValueError(
                f"label_smoothing={self.label_smoothing:g} does not fit loss_type={self.loss_type}: robust needs one "
                "above 0, such as 0.1, and the other losses have none (votes that differ make soft labels anyway)"
            )
        return self


PairConfig = RewardConfig | DpoConfig
TrainerConfig = SftConfig | PairConfig
"""Stages that train with TRL's trainers."""


class SampleConfig(PlacedSection):
    """Draw K responses per prompt from a policy."""

    stage: Literal["sample"] = "sample"
    """Which stage the file is for; a file says it, the command line repeats it."""
    run_dir: Name
    """Directory of the run: config, metrics, logs, results. A finished run in it is not written over."""
    seed: int = Field(0, ge=0)
    """Every random choice derives from it: equal configs with equal seeds draw and train alike."""
    model: ModelConfig
    prompts: FilesAlone
    """Files or globs of prompts; rows with answers are taken for their prompts."""
    prompt_format: str = "auto"
    """Format of ``prompts``, such as ``messages`` or ``alpaca``; ``auto`` detects it per file."""
    on_bad_row: OnBadRow = "refuse"
    """A row that does not fit stops the run, or is left out and listed in ``dropped.jsonl``."""
    responses_per_prompt: int = Field(4, ge=1)
    """Responses drawn per prompt; equal ones are left out of the candidates."""
    sampling: SamplingConfig = SamplingConfig()
    microbatch_sequences: int = Field(64, ge=1)
    """Sequences decoded together by one rollout worker; one that ends makes room for the next."""
    recovery: RecoveryConfig = RecoveryConfig()
    placement: PlacementConfig = PlacementConfig()
    telemetry: TelemetryConfig = TelemetryConfig()

    @property
    def placed_roles(self) -> tuple[str, ...]:
        """It only draws."""
        return ("rollout_worker",)


class EvaluateSamplingConfig(SamplingConfig):
    """How answers to compare are drawn."""

    temperature: float = Field(0.7, gt=0)
    """Divides the logits before a token is drawn; below 1 the answers are nearer to what the policy would say most
    often."""


class EvaluateConfig(PlacedSection):
    """Compare a policy with a baseline on held-out prompts."""

    stage: Literal["evaluate"] = "evaluate"
    """Which stage the file is for; a file says it, the command line repeats it."""
    run_dir: Name
    """Directory of the run: config, metrics, logs, results. A finished run in it is not written over."""
    seed: int = Field(0, ge=0)
    """Every random choice derives from it: equal configs with equal seeds draw and train alike."""
    model: ModelConfig
    baseline: NameOrModel
    """The policy to beat: a run directory or a model, or a section like ``model`` of its own. A name alone is held in
    the policy's precision, and takes nothing else from ``model``."""
    prompts: FilesAlone
    """Files or globs of held-out prompts; rows with answers are taken for their prompts."""
    prompt_format: str = "auto"
    """Format of ``prompts``, such as ``messages`` or ``alpaca``; ``auto`` detects it per file."""
    on_bad_row: OnBadRow = "refuse"
    """A row that does not fit stops the run, or is left out and listed in ``dropped.jsonl``."""
    judge: ScoreSource
    """Scores both answers; the higher wins, ties count half."""
    sampling: EvaluateSamplingConfig = EvaluateSamplingConfig()
    microbatch_sequences: int = Field(64, ge=1)
    """Sequences decoded together by one rollout worker; one that ends makes room for the next."""
    limit: int | None = Field(None, ge=1)
    """At most this many prompts; null: all."""
    recovery: RecoveryConfig = RecoveryConfig()
    placement: PlacementConfig = PlacementConfig()
    telemetry: TelemetryConfig = TelemetryConfig()

    @property
    def placed_roles(self) -> tuple[str, ...]:
        """First it draws."""
        return ("rollout_worker",)

    @property
    def later_roles(self) -> tuple[str, ...]:
        """A reward model that judges needs a place, too."""
        return ("scorer_worker",) if isinstance(self.judge, RewardModelSource) else ()

    @property
    def baseline_model(self) -> ModelConfig:
        """The baseline as a section: a name has a section of defaults, in the policy's precision."""
        if isinstance(self.baseline, ModelConfig):
            return self.baseline
        held = {key: getattr(self.model, key) for key in ("dtype", "attention")}
        return ModelConfig(name=self.baseline, **held)

    @model_validator(mode="after")
    def _judge_decides(self) -> EvaluateConfig:
        if self.judge.on_error == "drop":
            raise ValueError(
                "judge.on_error=drop would leave answers out, and a win rate over fewer prompts is another one: set it "
                "to fail, or leave it out"
            )
        if self.judge.weight == 0:
            raise ValueError(
                "judge.weight=0 makes every answer a tie: set another weight (below 0 the lower score wins), or leave "
                "it out"
            )
        return self


STAGES: dict[str, type[Section]] = {
    "sft": SftConfig,
    "reward": RewardConfig,
    "dpo": DpoConfig,
    "ppo": PpoConfig,
    "sample": SampleConfig,
    "evaluate": EvaluateConfig,
}
