"""What a base model's own config says, and what of it this system cannot do as asked."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from rlhf.config import ModelConfig
from rlhf.errors import ConfigError
from rlhf.models.source import ModelSource


def read_base_config(source: ModelSource, config: ModelConfig) -> PretrainedConfig:
    """The base's config; loads no weights. Code that it brings must have been checked before (``check_remote_code``).

    Raises:
        ConfigError: there is none, or transformers does not know its architecture.
    """
    kwargs: dict[str, Any] = {"revision": source.revision, "trust_remote_code": config.trust_remote_code}
    if config.trust_remote_code:
        kwargs["code_revision"] = config.revision
    try:
        return AutoConfig.from_pretrained(source.base, **kwargs)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model {source.base!r} cannot be loaded: {error}") from error


def attention_of(source: ModelSource, config: ModelConfig) -> str:
    """The way of attending, as transformers calls it: never one that leaves out the cap that a model was trained with.

    Raises:
        ConfigError: such a way is asked for; it would be another model.
    """
    cap = getattr(read_base_config(source, config).get_text_config(), "attn_logit_softcapping", None)
    if not cap:
        return "sdpa" if config.attention == "auto" else config.attention
    if config.attention == "sdpa":
        raise ConfigError(
            f"model.attention=sdpa leaves out what {source.base} does to its attention's logits "
            f"(attn_logit_softcapping={cap:g} in its config.json): leave it at auto, or set model.attention=eager"
        )
    return "eager"
