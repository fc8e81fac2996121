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
    check_remote_code((Path(source.base),), config)
    limit = _positions(read_base_config(source, config).get_text_config())
    total = sum(lengths.values())
    if limit is None or total <= limit:
        return
    told = " + ".join(f"{key}={value}" for key, value in lengths.items())
    told += f" = {total}" if len(lengths) > 1 else ""
    raise ConfigError(
        f"{told} must be at most {limit}, the positions of {source.base} (max_position_embeddings in its config.json): "
        "set less, or take a base that reads longer sequences"
    )


def _positions(config: PretrainedConfig) -> int | None:
    """Some models that are stretched by a factor name the positions before it, others those after it."""
    limit: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if limit is None or rope.get("rope_type") not in STRETCHED:
        return limit
    return max(limit, int(rope.get("factor", 1.0) * (rope.get("original_max_position_embeddings") or limit)))


def sampling_lengths(sampling: SamplingConfig, section: str) -> dict[str, int]:
    """What a sequence of a section's draws may hold, by key."""
    return {f"{section}.{key}": getattr(sampling, key) for key in ("max_prompt_tokens", "max_response_tokens")}
