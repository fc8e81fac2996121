"""What a critic on a base of its own starts from, and whether it reads the policy's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rlhf.config import ModelConfig, PpoConfig
from rlhf.data.chat import ChatFormat, chat_format
from rlhf.errors import CheckpointError, ConfigError
from rlhf.models import adapters
from rlhf.models.peft_methods import method_name
from rlhf.models.roles import RewardStart, RoleInit
from rlhf.models.scorer import HEAD, read_reward_settings
from rlhf.models.source import ModelSource, resolve_model
from rlhf.models.tokenizer import ensure_pad_token, load_tokenizer

PLAIN = "plain"
"""The chat format that has no template: its fingerprint is the tokenizer's alone."""


@dataclass(frozen=True)
class CriticOrigin:
    """Where a critic comes from.

    Attributes:
        source: a reward run with its adapter, or a base.
        model: how the base is held: as the policy's, but in the precision that a reward run was trained on.
    """

    source: ModelSource
    model: ModelConfig


def open_critic(config: PpoConfig, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat) -> CriticOrigin:
    """Resolves ``roles.critic`` and checks that it reads what the policy writes; loads no weights.

    Args:
        tokenizer / chat: the policy's.

    Raises:
        ConfigError: it is neither a reward run with an adapter nor a base, or reads other tokens than the policy.
        CheckpointError: the reward run is damaged.
    """
    name = config.roles.critic or ""
    source = resolve_model(name, key="roles.critic")
    record = source.record
    if source.adapter is None and record is not None and record.stage == "reward":
        raise ConfigError(f"roles.critic={name!r} is a reward model that was trained whole: its head stands on no "
                          "base that a critic's adapter could be put on; name a reward run with lora")  # fmt: skip
    if source.adapter is not None and (record is None or record.stage != "reward"):
        raise ConfigError(
            f"roles.critic={name!r} is no reward run: a critic starts from a finished reward run, or from a base model "
            "(rlhf export --merge makes one of a run)"
        )
    held = {"name": source.base, "revision": source.revision, "trust_remote_code": False, "chat_style": PLAIN}
    if record is not None and source.adapter is not None:
        held |= {**record.held, "chat_style": record.chat_style}
    model = ModelConfig.model_validate({**config.model.model_dump(), **held})
    own = critic_tokenizer(source, model, chat)
    if record is not None and source.adapter is not None:
        same = record.chat_fingerprint == chat.fingerprint()
    else:
        same = chat_format(own, PLAIN).fingerprint() == chat_format(tokenizer, PLAIN).fingerprint()
    if not same:
        raise ConfigError(
            f"roles.critic={name!r} reads text otherwise than the policy ({config.model.name}): a critic has a value "
            "for every token that was drawn, so tokenizer and, for a reward run, chat format (model.chat_style) must "
            "be the policy's; name a base or reward run of which this holds, leave roles.critic out (the critic then "
            "stands on the policy's base), or set advantage.method to grpo, rloo or reinforce_plus_plus"
        )
    if source.adapter is not None:
        _reward_start(source.adapter)
    return CriticOrigin(source, model)


def critic_tokenizer(source: ModelSource, model: ModelConfig, chat: ChatFormat) -> PreTrainedTokenizerBase:
    """The critic's own; as the policy's, it pads with nothing that ends a turn in the policy's ``chat``."""
    tokenizer = load_tokenizer(source, model)
    ensure_pad_token(tokenizer, chat.stop_ids)
    return tokenizer


def critic_init(config: PpoConfig, source: ModelSource) -> RoleInit:
    """First state of a critic that is alone on its base: the reward model's, or a fresh adapter and a zero head."""
    start = None if source.adapter is None else _reward_start(source.adapter)
    shape, method = adapters.peft_config(config.lora), method_name(config.lora)
    return RoleInit(None, reward=start, holds_reward=False, critic_config=shape, method=method)


def _reward_start(directory: Path) -> RewardStart:
    state, rest = adapters.read_adapter_file(directory)
    if HEAD not in rest:
        raise CheckpointError(f"{directory} holds no reward head ({HEAD}): the critic's first values would be random")
    settings = read_reward_settings(directory)
    return RewardStart(adapters.read_peft_config(directory), state, rest[HEAD], settings.mean, settings.std)
