"""What the roles on a shared base start from: which reward models are on it, and every adapter's first state."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from rlhf.config import PpoConfig, RewardModelSource
from rlhf.data.chat import ChatFormat
from rlhf.errors import ConfigError
from rlhf.models import adapters
from rlhf.models.roles import POLICY, RoleInit
from rlhf.models.scorer import read_reward_settings
from rlhf.models.source import ModelSource, resolve_model


def split_scorers(
    scores: Sequence[Any], source: ModelSource, chat: ChatFormat
) -> tuple[tuple[int, ModelSource] | None, dict[int, str]]:
    """The first reward model that is an adapter on the policy's base and reads the policy's text; the others' runs.

    Both with their index in ``scores``.

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
        if shared is None and same_base and reward.record.chat_fingerprint == chat.fingerprint():
            shared = index, reward
        else:
            separate[index] = score.run
    return shared, separate


def trained_copy(base: PreTrainedModel, source: ModelSource) -> PreTrainedModel:
    """A copy of the bare base with the SFT adapter, if there is one, merged into it; every tensor is trained.

    Raises:
        ConfigError: the adapter's method changes more than weights, so that nothing can be merged.
    """
    own = copy.deepcopy(base)
    if source.adapter is not None:
        saved = adapters.read_peft_config(source.adapter)
        adapted: Any = adapters.attach(own, saved, POLICY)
        if not hasattr(adapted.base_model, "merge_and_unload"):
            raise ConfigError(
                f"policy_weights=full: the adapter of {source.run_dir} ({adapters.method_of(saved)}) cannot be merged "
                "into the model; start from the base, or keep policy_weights=adapter"
            )
        adapters.write_adapter(adapted, POLICY, adapters.read_adapter_file(source.adapter)[0])
        own = adapted.merge_and_unload()
    return own.requires_grad_(True)


def role_init(
    config: PpoConfig,
    source: ModelSource,
    policy_config: Any,
    reward: ModelSource | None,
    policy_copy: PreTrainedModel | None = None,
) -> RoleInit:
    """First states of policy, critic and the reward model that shares the base, if one does."""
    policy_state = adapters.read_adapter_file(source.adapter)[0] if source.adapter else None
    critic = adapters.peft_config(config.lora) if config.uses_critic else None
    if reward is None or reward.adapter is None:
        return RoleInit(policy_config, policy_state, policy_copy, critic_config=critic)
    state, rest = adapters.read_adapter_file(reward.adapter)
    settings = read_reward_settings(reward.adapter)
    return RoleInit(
        policy_config,
        policy_state,
        policy_copy,
        reward_config=adapters.read_peft_config(reward.adapter),
        reward_state=state,
        reward_head=rest["score.weight"],
        reward_mean=settings.mean,
        reward_std=settings.std,
        critic_config=critic,
    )
