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


def check_attention(source: ModelSource, config: ModelConfig) -> None:
    """Refuses a way of attending that leaves out the cap which the model was trained with: it would be another model.

    Raises:
        ConfigError: naming the key and the way that has the cap.
    """
    cap = getattr(read_base_config(source, config).get_text_config(), "attn_logit_softcapping", None)
    if cap and config.attention != "eager":
        raise ConfigError(
            f"model.attention={config.attention} leaves out what {source.base} does to its attention's logits "
            f"(attn_logit_softcapping={cap:g} in its config.json): set model.attention=eager"
        )
