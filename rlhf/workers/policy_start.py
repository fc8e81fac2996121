"""What the roles on a shared base start from: which reward models are on it, and every adapter's first state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf.config import PpoConfig, RewardModelSource
from rlhf.data.chat import ChatFormat
from rlhf.errors import ConfigError
from rlhf.models import adapters
from rlhf.models.roles import RoleInit
from rlhf.models.scorer import read_reward_settings
from rlhf.models.source import ModelSource, resolve_model


def split_scorers(scores: Sequence[Any], source: ModelSource, chat: ChatFormat) -> tuple[int | None, dict[int, str]]:
    """The reward model that shares the policy's base and text (by index of ``scores``), and the others' runs.

    Raises:
        ConfigError: a run is no finished reward run.
    """
    shared, separate = None, {}
    for index, score in enumerate(scores):
        if not isinstance(score, RewardModelSource):
            continue
        reward = resolve_model(score.run)
        if reward.record is None or reward.record.stage != "reward":
            raise ConfigError(f"scores[{index}].run={score.run!r} is not a finished reward run")
        same_base = reward.adapter is not None and reward.base == source.base
        same_text = reward.record.chat_fingerprint == chat.fingerprint()
        if shared is None and same_base and same_text:
            shared = index
        else:
            separate[index] = score.run
    return shared, separate


def role_init(config: PpoConfig, source: ModelSource, policy_config: Any, shared_score: int | None) -> RoleInit:
    """First states of policy, critic and the reward model that shares the base.

    Raises:
        ConfigError: the shared reward model has no adapter.
    """
    policy_state = adapters.read_adapter_file(source.adapter)[0] if source.adapter else None
    critic = adapters.peft_config(config.lora) if config.uses_critic else None
    if shared_score is None:
        return RoleInit(policy_config, policy_state, critic_config=critic)
    run = resolve_model(config.scores[shared_score].run)  # type: ignore[union-attr]
    if run.adapter is None:
        raise ConfigError(f"{run.run_dir}: a shared reward model needs an adapter")
    state, rest = adapters.read_adapter_file(run.adapter)
    settings = read_reward_settings(run.adapter)
    return RoleInit(
        policy_config,
        policy_state,
        reward_config=adapters.read_peft_config(run.adapter),
        reward_state=state,
        reward_head=rest["score.weight"],
        reward_mean=settings.mean,
        reward_std=settings.std,
        critic_config=critic,
    )
