"""One frozen config per stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AliasChoices, Field, model_validator

from rlhf.config.base import Files, Name, OnBadRow, Section
from rlhf.config.common import PlacedSection, StageConfig, exact_division
from rlhf.config.compared import LATER
from rlhf.config.model import LoraConfig, ModelConfig, OptimConfig, PlacementConfig, TelemetryConfig
from rlhf.config.ppo import (
    AdvantageConfig,
    KlConfig,
    PpoBatch,
    PpoConfig,
    PpoLossConfig,
)
from rlhf.config.rollout import RolloutConfig, SamplingConfig
from rlhf.config.scores import RewardModelSource, ScoreConfig, ScoreSource
from rlhf.config.sources import Mixed, sources_of, why_not_mixed

__all__ = [
    "STAGES",
    "AdvantageConfig",
    "DataConfig",
    "EvaluateConfig",
    "KlConfig",
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
]


class DataConfig(Section):
    """Rows to train on."""

    train: Mixed
    """Files or globs, or ``store:PROJECT[@vN]`` for rankings from the preference store; or a list of sources, each with
    ``files``, and ``format``, ``limit`` and ``weight`` of its own (``format`` here is then that of ``evaluation``)."""
    evaluation: str | tuple[str, ...] | None = None
    """Held-out rows; without it ``eval_fraction`` of the prompts is held out by prompt hash."""
    eval_fraction: float = Field(0.1, ge=0, lt=1)
    on_overlap: Annotated[Literal["refuse", "drop"], LATER] = "refuse"
    """Prompts of ``evaluation`` that are in ``train``, too, stop the run, or their rows are left out of training and
    listed in ``dropped_overlap.jsonl``."""
    format: str = "auto"
    on_bad_row: OnBadRow = "refuse"
    on_long_row: Literal["refuse", "drop", "truncate"] = "refuse"
    limit: int | None = Field(None, ge=1)
    max_sequence_tokens: int = Field(512, ge=8)

    @model_validator(mode="after")
    def _sources_have_their_own(self) -> DataConfig:
        if reason := why_not_mixed(self.train, "data.train", {"data.limit": self.limit}):
            raise ValueError(reason)
        return self


class SftBatch(Section):
    """Rows per optimizer step; accumulation is derived by exact division."""

    minibatch_sequences: int = Field(32, ge=1)
    microbatch_sequences_per_gpu: int = Field(4, ge=1)


class SftConfig(StageConfig):
    """Supervised fine-tuning on demonstrations."""

    stage: Literal["sft"] = "sft"
    data: DataConfig
    lora: LoraConfig | None = LoraConfig()
    """null: full fine-tuning."""
    optim: OptimConfig = OptimConfig()
    batch: SftBatch = SftBatch()
    num_epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1)
    packing: bool = False
    eval_every_steps: int = Field(50, ge=1)
    early_stopping_patience: int | None = Field(None, ge=1)
    """Evaluations without improvement before stopping; the best weights are restored."""

    @model_validator(mode="after")
    def _rules(self) -> SftConfig:
        self.gradient_accumulation  # noqa: B018 - refuses uneven batches before any worker starts
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
    microbatch_pairs_per_gpu: int = Field(8, ge=1)


class PreferenceDataConfig(DataConfig):
    """Preferences to train on; ``data.preferences`` is another word for ``data.train``."""

    train: Mixed = Field(validation_alias=AliasChoices("train", "preferences"))


class RewardConfig(StageConfig):
    """A reward model from pairwise preferences (arXiv:2203.02155 eq. 1)."""

    stage: Literal["reward"] = "reward"
    data: PreferenceDataConfig
    lora: LoraConfig | None = LoraConfig()
    optim: OptimConfig = OptimConfig()
    batch: RewardBatch = RewardBatch()
    num_epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1)
    eval_every_steps: int = Field(50, ge=1)
    early_stopping_patience: int | None = Field(None, ge=1)
    weight_by_prompt: bool = True
    """All pairs of one prompt weigh together 1."""
    use_margins: bool = True
    annotator_weights: bool = False
    """Weight votes by the estimated reliability of their annotators (``store:`` data only)."""
    centering: float = Field(0.0, ge=0)
    """Coefficient of (score_chosen + score_rejected)^2."""
    normalize_on: str | None = None
    """Rows (any demonstration format) on which scores get mean 0, deviation 1; default: chosen and rejected rows."""

    @model_validator(mode="after")
    def _rules(self) -> RewardConfig:
        self.gradient_accumulation  # noqa: B018
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


class SampleConfig(PlacedSection):
    """Draw K responses per prompt from a policy."""

    stage: Literal["sample"] = "sample"
    run_dir: Name
    seed: int = Field(0, ge=0)
    model: ModelConfig
    prompts: Files
    prompt_format: str = "auto"
    on_bad_row: Annotated[OnBadRow, LATER] = "refuse"
    responses_per_prompt: int = Field(4, ge=1)
    sampling: SamplingConfig = SamplingConfig()
    microbatch_sequences: int = Field(64, ge=1)
    placement: PlacementConfig = PlacementConfig()
    telemetry: TelemetryConfig = TelemetryConfig()

    @property
    def placed_roles(self) -> tuple[str, ...]:
        """It only draws."""
        return ("rollout_worker",)


class EvaluateSamplingConfig(SamplingConfig):
    """How answers to compare are drawn."""

    temperature: float = Field(0.7, gt=0)


class EvaluateConfig(PlacedSection):
    """Compare a policy with a baseline on held-out prompts."""

    stage: Literal["evaluate"] = "evaluate"
    run_dir: Name
    seed: int = Field(0, ge=0)
    model: ModelConfig
    baseline: str
    """The policy to beat: a run directory or a model."""
    prompts: Files
    prompt_format: str = "auto"
    on_bad_row: Annotated[OnBadRow, LATER] = "refuse"
    judge: ScoreSource
    """Scores both answers; the higher wins, ties count half."""
    sampling: EvaluateSamplingConfig = EvaluateSamplingConfig()
    microbatch_sequences: int = Field(64, ge=1)
    num_bootstrap: int = Field(2000, ge=100)
    limit: int | None = Field(None, ge=1)
    placement: PlacementConfig = PlacementConfig()
    telemetry: TelemetryConfig = TelemetryConfig()

    @property
    def placed_roles(self) -> tuple[str, ...]:
        """A reward model that judges needs a place, too."""
        return ("rollout_worker", *(["scorer_worker"] if isinstance(self.judge, RewardModelSource) else []))


STAGES: dict[str, type[Section]] = {
    "sft": SftConfig,
    "reward": RewardConfig,
    "ppo": PpoConfig,
    "sample": SampleConfig,
    "evaluate": EvaluateConfig,
}
