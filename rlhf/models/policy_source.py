"""A model that answers: no reward model, and held as its run held it, because an adapter fits those weights only."""

from __future__ import annotations

from rlhf.config import ModelConfig
from rlhf.config.held import held_as
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
    """The model's settings with the quantization of the run that it comes from, single or double, where left open.

    A run that trained the whole model has no adapter, and its weights may be held in any way.

    Args:
        key: of the settings, for messages.

    Raises:
        ConfigError: the settings name another quantization than the adapter was trained on.
    """
    record = source.record
    if record is None or source.adapter is None:
        return model
    return held_as(model, record.held, source.run_dir, key=key)
