"""Whether all that reads a PPO run's sequences has positions for the longest of them."""

from __future__ import annotations

from rlhf.config import PpoConfig
from rlhf.models.positions import check_positions, sampling_lengths
from rlhf.models.source import ModelSource


def check_lengths(config: PpoConfig, source: ModelSource) -> None:
    """Refuses sequences, of rollouts and of demonstrations that anchor the policy, beyond the policy's base.

    Raises:
        ConfigError: naming keys, values and the base's limit.
    """
    check_positions(source, config.model, sampling_lengths(config.rollout, "rollout"))
    if config.ptx is not None:
        check_positions(source, config.model, {"ptx.max_sequence_tokens": config.ptx.max_sequence_tokens})
