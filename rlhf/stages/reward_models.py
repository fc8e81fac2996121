"""Where the reward models of a PPO run are: decided and refused in the driver, before any worker starts."""

from __future__ import annotations

from typing import Any

from rlhf.config import ModelConfig, PpoConfig, RewardModelSource
from rlhf.data.chat import ChatFormat
from rlhf.errors import ConfigError
from rlhf.models.positions import check_positions, sampling_lengths
from rlhf.models.source import ModelSource, adapter_fingerprint, base_fingerprint, resolve_model
from rlhf.workers.policy_start import RewardModels, place_reward_models


def reward_models_of(config: PpoConfig, source: ModelSource, chat: ChatFormat) -> RewardModels:
    """Which reward model is an adapter on the policy's base, and which have workers of their own.

    Args:
        source / chat: the policy's.

    Raises:
        ConfigError: ``roles.layout=shared`` and one cannot share the base, workers that share GPUs by fractions have
            no fraction, they cannot be placed so, or one is handed longer sequences than it has positions for.
    """
    found, placement = place_reward_models(config, source, chat), config.placement
    for model in found.separate:
        if model.reads_tokens:
            reward = resolve_model(model.run)
            check_positions(reward, ModelConfig(name=reward.base), sampling_lengths(config.rollout, "rollout"))
    fractions = placement.layout == "colocated" and placement.gpus_per_rank is not None
    if found.separate and fractions and placement.gpus_per_scorer_worker is None:
        raise ConfigError(
            f"scores[{found.separate[0].index}] needs scorer workers, and placement.layout=colocated shares GPUs by "
            "fractions: set placement.gpus_per_scorer_worker beside gpus_per_rank and gpus_per_rollout_worker, e.g. "
            "0.4, 0.3 and 0.3 (0: on CPUs)"
        )
    scorers = ["scorer_worker"] if found.separate else []
    if reason := placement.why_refused([*config.placed_roles, *scorers]):
        raise ConfigError(reason)
    return found


def reward_identity(config: PpoConfig) -> dict[str, Any]:
    """The reward models that a checkpoint's scores are of: one that was trained anew under its name is another."""
    runs = [resolve_model(score.run) for score in config.scores if isinstance(score, RewardModelSource)]
    return {"reward_sha256": [[base_fingerprint(run.base), adapter_fingerprint(run)] for run in runs]}


def placement_rows(config: PpoConfig, models: RewardModels) -> list[tuple[str, str]]:
    """Rows of (key, value) for a dry run; none without reward models."""
    parts = []
    if models.shared_index is not None:
        parts.append(f"scores[{models.shared_index}] on the policy's base")
    for model in models.separate:
        parts.append(f"scores[{model.index}] by scorer workers, from {'tokens' if model.reads_tokens else 'text'}")
    rows = [("reward models", "; ".join(parts))] if parts else []
    if models.separate:
        rows.append(
            ("scorer workers", f"{config.placement.num_scorer_workers}, each with {len(models.separate)} of them")
        )
    return rows
