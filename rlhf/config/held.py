"""How a model is held that a run has trained: as it was, because an adapter fits those weights only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from rlhf.config.base import Section
from rlhf.config.model import ModelConfig
from rlhf.errors import ConfigError

SectionT = TypeVar("SectionT", bound=Section)

READ = ("model", "baseline")
"""Sections that name a model."""
HELD = ("quantization",)
"""Keys of theirs that are taken over from a run, where they are left open."""


def models_of(config: Section) -> dict[str, ModelConfig]:
    """Sections of the models that a stage reads, by key."""
    found = {key: getattr(config, key, None) for key in READ}
    return {key: model for key, model in found.items() if isinstance(model, ModelConfig)}


def held_as(model: ModelConfig, quantization: str, run_dir: str | Path | None, *, key: str = "model") -> ModelConfig:
    """The model's settings with the quantization on which an adapter was trained, where they leave it open.

    Args:
        quantization: what the run's record says.
        key: of the settings, for messages.

    Raises:
        ConfigError: the settings name another one.
    """
    if quantization == model.quantization:
        return model
    if "quantization" in model.model_fields_set:
        raise ConfigError(
            f"{key}.quantization={model.quantization}, and the adapter of {run_dir} was trained on a base with "
            f"quantization={quantization}, other weights: leave {key}.quantization out, which takes the run's, "
            f"or set it to {quantization}"
        )
    return model.model_copy(update={"quantization": quantization})


def as_recorded(config: SectionT, recorded: Mapping[str, Any]) -> SectionT:
    """The config with what a run of it has taken over from the runs whose models it reads.

    Args:
        recorded: the config of that run.

    Raises:
        KeyError, TypeError: it is none.
    """
    taken: dict[str, ModelConfig] = {}
    for key, model in models_of(config).items():
        lent = {name: recorded[key][name] for name in HELD if name in recorded[key]}
        taken[key] = model.model_copy(update={k: v for k, v in lent.items() if k not in model.model_fields_set})
    return config.model_copy(update=taken)
