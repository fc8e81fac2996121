"""What every training stage has, and the rules that hold in all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from rlhf.config.base import Name, Section
from rlhf.config.methods import METHODS, why_not
from rlhf.config.model import EngineConfig, LoraConfig, ModelConfig, PlacementConfig, TelemetryConfig
from rlhf.config.recovery import CheckpointConfig, RecoveryConfig


class PlacedSection(Section):
    """A stage with ``placement``, whose workers must be possible to place."""

    if TYPE_CHECKING:  # each declares it where it stands in its file
        placement: PlacementConfig

    @property
    def placed_roles(self) -> tuple[str, ...]:
        """Roles for which places are sure to be needed, named as in ``placement.num_ROLEs``."""
        return ("rank",)

    @property
    def doubtful_roles(self) -> tuple[str, ...]:
        """Roles for which it turns out later whether places are needed."""
        return ()

    @property
    def later_roles(self) -> tuple[str, ...]:
        """Roles that start when the others have ended: they take places of their own, beside nobody."""
        return ()

    @model_validator(mode="after")
    def _places_can_be_had(self) -> PlacedSection:
        reason = self.placement.why_refused(self.placed_roles, perhaps=self.doubtful_roles)
        if reason is None and self.later_roles:
            reason = self.placement.why_refused(self.later_roles)
        if reason is not None:
            raise ValueError(reason)
        return self


class StageConfig(PlacedSection):
    """What every stage that trains has."""

    run_dir: Name
    """Directory of the run: config, metrics, checkpoints, final weights. The same command goes on from what is in
    it."""
    seed: int = Field(0, ge=0)
    """Every random choice derives from it: equal configs with equal seeds draw and train alike."""
    model: ModelConfig
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    placement: PlacementConfig = PlacementConfig()
    telemetry: TelemetryConfig = TelemetryConfig()

    @model_validator(mode="after")
    def _method_fits(self) -> StageConfig:
        lora = getattr(self, "lora", None)
        if isinstance(lora, LoraConfig):
            quantization, zero_stage = self.model.quantization, self.engine.zero_stage
            method = "dora" if lora.use_dora else lora.method
            if reason := why_not(method, quantization=quantization, zero_stage=zero_stage):
                raise ValueError(reason)
            optim = getattr(self, "optim", None)
            if not METHODS[method].holds_half or optim is None:
                return self
            if optim.optimizer == "adamw_8bit":
                raise ValueError(
                    f"optim.optimizer=adamw_8bit would move the half of a lora.method={method} adapter that has to "
                    "stay as it starts, because its 8 bits have no exact zero: set it to adamw"
                )
            if optim.weight_decay:
                raise ValueError(
                    f"optim.weight_decay={optim.weight_decay:g} would shrink the half of a lora.method={method} "
                    "adapter that has to stay as it starts: set it to 0"
                )
        return self


def exact_division(minibatch: int, micro: int, num_ranks: int, key: str, ranks_key: str = "num_ranks") -> int:
    if minibatch % (micro * num_ranks):
        raise ValueError(
            f"batch.{key}={minibatch} must be a multiple of batch.micro{key.removeprefix('mini')}_per_gpu={micro} "
            f"x placement.{ranks_key}={num_ranks} (= {micro * num_ranks}); try "
            f"batch.{key}={max(1, round(minibatch / (micro * num_ranks))) * micro * num_ranks}"
        )
    return minibatch // (micro * num_ranks)
