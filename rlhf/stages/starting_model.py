"""What a stage takes over from the runs whose models it reads, before anything is checked or written."""

from __future__ import annotations

from typing import TypeVar

from rlhf.config import ModelConfig, RewardConfig, build_config
from rlhf.config.base import Section
from rlhf.config.held import models_of
from rlhf.models.policy_source import as_trained, resolve_policy
from rlhf.models.source import resolve_model

StageT = TypeVar("StageT", bound=Section)


def with_starting_models(config: StageT) -> StageT:
    """The config with the quantization of every run that it reads a model from, where the config left it open.

    The rules of the stage hold for what was taken over, too.

    Raises:
        ConfigError: a reward run, and the stage is no reward training; another quantization than the run's; or the
            stage cannot train on it.
    """
    resolve = resolve_model if isinstance(config, RewardConfig) else resolve_policy
    taken: dict[str, ModelConfig] = {}
    for key, model in models_of(config).items():
        found = as_trained(model, resolve(model.name, model.revision, key=f"{key}.name"), key=key)
        if found != model:
            taken[key] = found
    if not taken:
        return config
    tree = config.model_dump(mode="json") | {key: model.model_dump(mode="json") for key, model in taken.items()}
    told = [f"{key}.quantization={model.quantization}, as {model.name} was trained" for key, model in taken.items()]
    made: StageT = build_config(type(config), tree, source="; ".join(told))
    return made
