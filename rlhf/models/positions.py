"""Whether a model has a position for every token that a stage's limits let into a sequence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from transformers import PretrainedConfig

from rlhf.config import ModelConfig, SamplingConfig
from rlhf.errors import ConfigError
from rlhf.models.base_config import read_base_config
from rlhf.models.source import ModelSource
from rlhf.models.trust import check_remote_code

STRETCHED = ("linear", "dynamic", "yarn")
"""Ways of RoPE that may be switched on over a config that goes on naming the positions without them."""


def check_positions(source: ModelSource, config: ModelConfig, lengths: Mapping[str, int]) -> None:
    """Refuses limits whose sum is more than the model was trained for.

    A model that learned its positions has none beyond, and dies with the first sequence that long; one that turns
    them (RoPE) answers what nobody has trained, unless it stretches them.

    Args:
        lengths: tokens by the key that allows them.

    Raises:
        ConfigError: naming keys, values and the model's limit.
    """
    limit = num_positions(source, config)
    total = sum(lengths.values())
    if limit is None or total <= limit:
        return
    told = " + ".join(f"{key}={value}" for key, value in lengths.items())
    told += f" = {total}" if len(lengths) > 1 else ""
    raise ConfigError(
        f"{told} must be at most {limit}, the positions of {source.base} (max_position_embeddings in its config.json): "
        "set less, or take a base that reads longer sequences"
    )


def num_positions(source: ModelSource, config: ModelConfig) -> int | None:
    """Tokens of the longest sequence that the model was made for; None where its config does not say.

    Raises:
        ConfigError: it has no readable config, or brings unread code.
    """
    check_remote_code((Path(source.base),), config)
    return _positions(read_base_config(source, config).get_text_config())


def prompt_room(source: ModelSource, config: ModelConfig, max_response_tokens: int) -> int | None:
    """Tokens that a prompt may have beside the longest response; None: as many as one likes.

    Raises:
        ConfigError: there is no room for a prompt.
    """
    check_positions(source, config, {"--max-response-tokens": max_response_tokens, "a prompt": 1})
    limit = num_positions(source, config)
    return None if limit is None else limit - max_response_tokens


def sampling_lengths(sampling: SamplingConfig, section: str) -> dict[str, int]:
    """What a sequence of a section's draws may hold, by key."""
    return {f"{section}.{key}": getattr(sampling, key) for key in ("max_prompt_tokens", "max_response_tokens")}


def _positions(config: PretrainedConfig) -> int | None:
    """Some models that are stretched by a factor name the positions before it, others those after it."""
    limit: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if limit is None or rope.get("rope_type") not in STRETCHED:
        return limit
    return max(limit, int(rope.get("factor", 1.0) * (rope.get("original_max_position_embeddings") or limit)))
