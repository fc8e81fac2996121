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
HELD = ("quantization", "double_quantization")
"""Keys of theirs that make other weights of a base; they are taken over from a run, where they are left open."""


def models_of(config: Section) -> dict[str, ModelConfig]:
    """Sections of the models that a stage reads, by key."""
    found = {key: getattr(config, key, None) for key in READ}
    return {key: model for key, model in found.items() if isinstance(model, ModelConfig)}


def held_of(model: ModelConfig) -> dict[str, Any]:
    """How a model is held, as a run records it."""
    return {name: getattr(model, name) for name in HELD}


def held_otherwise(trained: Mapping[str, Any], model: ModelConfig) -> list[str]:
    """Keys by which other weights come out of the same base: double quantization is of 4-bit weights alone."""
    return [
        name
        for name in HELD
        if trained[name] != getattr(model, name) and (name == "quantization" or trained["quantization"] == "nf4")
    ]


def held_as(model: ModelConfig, trained: Mapping[str, Any], run_dir: str | Path | None, *, key: str) -> ModelConfig:
    """The model's settings, held as the base was on which an adapter was trained, where they leave it open.

    Args:
        trained: what the run's record says (``HELD``).
        key: of the settings, for messages.

    Raises:
        ConfigError: the settings say otherwise.
    """
    names = held_otherwise(trained, model)
    for name in names:
        if name in model.model_fields_set:
            asked, found = yaml_text(getattr(model, name)), yaml_text(trained[name])
            raise ConfigError(
                f"{key}.{name}={asked}, and the adapter of {run_dir} was trained on a base with {name}={found}, other "
                f"weights: leave {key}.{name} out, which takes the run's, or set it to {found}"
            )
    return model.model_copy(update={name: trained[name] for name in names}) if names else model


def yaml_text(value: Any) -> str:
    """As it is written in a config."""
    return str(value).lower() if isinstance(value, bool) else str(value)


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
