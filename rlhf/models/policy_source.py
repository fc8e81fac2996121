"""A model that answers: no reward model, and held as its run held it, because an adapter fits those weights only."""

from __future__ import annotations

from rlhf.config import ModelConfig
from rlhf.errors import ConfigError
from rlhf.models.source import ModelSource, resolve_model


def resolve_policy(name: str, revision: str | None = None, *, key: str = "model.name") -> ModelSource:
    """Finds out what the name of a policy refers to; see ``resolve_model``.

    Args:
        key: what names it, for messages.

    Raises:
        ConfigError: as ``resolve_model``, and for a reward run, whose adapter was trained to score.
    """
    source = resolve_model(name, revision, key=key)
    if source.record is not None and source.record.stage == "reward":
        raise ConfigError(
            f"{key}={name!r} is a reward run; a policy is wanted, which draws text: name a finished sft, dpo or ppo "
            "run, or a base model"
        )
    return source


def as_trained(model: ModelConfig, source: ModelSource, *, key: str = "model") -> ModelConfig:
    """The model's settings with the quantization of the run that it comes from, where they leave it open.

    A run that trained the whole model has no adapter, and its weights may be held in any way.

    Args:
        key: of the settings, for messages.

    Raises:
        ConfigError: the settings name another quantization than the adapter was trained on.
    """
    record, asked = source.record, model.quantization
    if record is None or source.adapter is None or record.quantization == asked:
        return model
    if "quantization" in model.model_fields_set:
        raise ConfigError(
            f"{key}.quantization={asked}, and the adapter of {source.run_dir} was trained on a base with "
            f"quantization={record.quantization}, other weights: leave {key}.quantization out, which takes the run's, "
            f"or set it to {record.quantization}"
        )
    return model.model_copy(update={"quantization": record.quantization})
