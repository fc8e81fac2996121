"""What the roles on a shared base start from: which reward models are on it, and every adapter's first state."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from rlhf.config import ModelConfig, PpoConfig, RewardModelSource
from rlhf.config.held import held_otherwise, yaml_text
from rlhf.data.chat import ChatFormat
from rlhf.errors import ConfigError
from rlhf.models import adapters
from rlhf.models.peft_methods import method_name
from rlhf.models.roles import POLICY, RewardStart, RoleInit
from rlhf.models.scorer import read_reward_settings
from rlhf.models.source import ModelSource, resolve_model


@dataclass(frozen=True)
class SeparateModel:
    """A reward model in worker processes of its own.

    Attributes:
        index: its place in ``scores``.
        reads_tokens: its chat format is the policy's, so that it is handed the very tokens that were drawn; any other
            reads text.
        drops_unwritable: a text that its chat template rewrites gets no score, instead of ending the run.
    """

    index: int
    run: str
    reads_tokens: bool
    drops_unwritable: bool = False


@dataclass(frozen=True)
class RewardModels:
    """Where the reward models of a run are.

    Attributes:
        fitting: the first that is an adapter on the policy's base and reads the policy's text, with its index in
            ``scores``: the critic starts from it.
        holds_fitting: it is a role of the training ranks; otherwise it is one of ``separate``.
        separate: those that have workers of their own.
    """

    fitting: tuple[int, ModelSource] | None
    holds_fitting: bool
    separate: tuple[SeparateModel, ...]

    @property
    def shared_index(self) -> int | None:
        """Place in ``scores`` of the one that the training ranks hold."""
        return self.fitting[0] if self.fitting is not None and self.holds_fitting else None


def place_reward_models(config: PpoConfig, source: ModelSource, chat: ChatFormat) -> RewardModels:
    """Decides which reward model is an adapter on the policy's base, and which have workers of their own.

    Args:
        source / chat: the policy's.

    Raises:
        ConfigError: a run is no finished reward run, or ``layout=shared`` and one cannot share the base; says why.
    """
    fitting: tuple[int, ModelSource] | None = None
    separate = []
    layout = config.roles.layout
    for index, score in enumerate(config.scores):
        if not isinstance(score, RewardModelSource):
            continue
        reward = resolve_model(score.run, key=f"scores[{index}].run")
        if reward.record is None or reward.record.stage != "reward":
            raise ConfigError(f"scores[{index}].run={score.run!r} is not a finished reward run")
        reads_tokens = reward.record.chat_fingerprint == chat.fingerprint()
        reason = _why_other_weights(reward, reward.record.held, source, config.model)
        reason = reason or _why_not_shared(reads_tokens, None if fitting is None else fitting[0])
        if reason is not None and layout == "shared":
            raise ConfigError(
                f"roles.layout=shared, and the reward model scores[{index}].run={score.run!r} cannot share the "
                f"policy's base: {reason}; set roles.layout=auto to give it workers of its own"
            )
        if reason is None:
            fitting = index, reward
        if reason is not None or layout == "separate":
            separate.append(SeparateModel(index, score.run, reads_tokens, score.on_error == "drop"))
    return RewardModels(fitting, layout != "separate", tuple(separate))


def _why_other_weights(
    reward: ModelSource, trained: Mapping[str, Any], source: ModelSource, model: ModelConfig
) -> str | None:
    """Why a reward adapter would act on other weights on the policy's base than those that it was trained on."""
    if reward.adapter is None:
        return "it is a whole model, not an adapter"
    if reward.base != source.base:
        return f"it stands on another base ({reward.base}, the policy on {source.base})"
    if reward.revision != source.revision:
        return f"it stands on another revision of the base ({reward.revision}, the policy on {source.revision})"
    for name in held_otherwise(trained, model):
        own = yaml_text(getattr(model, name))
        return f"it was trained with model.{name}={yaml_text(trained[name])}, the policy has {own}"
    return None


def _why_not_shared(same_chat: bool, first: int | None) -> str | None:
    if not same_chat:
        return "it was trained with another chat format (tokenizer, chat_style or template) than the policy's"
    if first is not None:
        return f"it is the second reward model, and scores[{first}] has the one place"
    return None


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
    models: RewardModels,
    policy_copy: PreTrainedModel | None = None,
) -> RoleInit:
    """First states of policy, reward model and critic, of the last two where they share the base."""
    return RoleInit(
        policy_config,
        adapters.read_adapter_file(source.adapter)[0] if source.adapter else None,
        policy_copy,
        _reward_start(models, policy_config),
        holds_reward=models.holds_fitting,
        critic_config=adapters.peft_config(config.lora) if config.critic_shares_base else None,
        method=method_name(config.lora),
    )


def _reward_start(models: RewardModels, policy_config: Any) -> RewardStart | None:
    """The reward model on the policy's base, wherever it scores: the layout is no matter of what the critic learns.

    One that scores elsewhere may have another adapter method, and then fits no critic beside this policy.
    """
    reward = None if models.fitting is None else models.fitting[1].adapter
    if reward is None:
        return None
    config = adapters.read_peft_config(reward)
    if not models.holds_fitting and adapters.method_of(config) != adapters.method_of(policy_config):
        return None
    state, rest = adapters.read_adapter_file(reward)
    settings = read_reward_settings(reward)
    return RewardStart(config, state, rest["score.weight"], settings.mean, settings.std)
