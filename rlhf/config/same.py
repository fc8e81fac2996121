"""Whether two configs ask for the same, where one was written down by an earlier release: defaults have come since, and
what has no effect is refused by now."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlhf.config.base import Section
from rlhf.config.held import as_recorded
from rlhf.config.load import build_config, config_hash
from rlhf.config.sources import is_of_store
from rlhf.errors import ConfigError

FREE_SECTIONS = ("run_dir", "telemetry", "checkpoint", "recovery", "placement", "sample_every_steps", "sync_tolerance",
                 "mismatch_limit", "ratio_tolerance")  # fmt: skip
"""Keys that do not change what is computed."""

FREE_OF_SOURCES = ("timeout_seconds", "start_timeout_seconds", "retries", "backoff_seconds", "concurrent_requests")
"""The same within an entry of ``scores`` and within ``judge``: how patiently scores are asked for."""

Flat = dict[str, Any]
_CRITIC = ("roles.critic", "critic_learning_rate", "critic_max_grad_norm", "loss.critic_warmup_steps")


def _reads_no_format(keys: Mapping[str, Any]) -> bool:
    """Whether no file is left that ``data.format`` could be the format of."""
    train, evaluation = keys.get("data.train"), keys.get("data.evaluation")
    listed = isinstance(train, list) and any(isinstance(source, Mapping) for source in train)
    return (listed or is_of_store(train)) and (evaluation is None or is_of_store(evaluation))


_IDLE: tuple[tuple[Callable[[Mapping[str, Any]], bool], tuple[str, ...]], ...] = (
    (lambda keys: keys.get("score.missing_eos") == "keep", ("score.missing_eos_value",)),
    (lambda keys: keys.get("advantage.method", "gae") != "gae", _CRITIC),
    (lambda keys: keys.get("kl.target") is None, ("kl.horizon",)),
    (lambda keys: keys.get("engine.zero_stage") == 3, ("roles.recompute_feed_forward",)),
    (lambda keys: keys.get("rollout.engine") == "vllm", ("rollout.cuda_graphs",)),
    (_reads_no_format, ("data.format",)),
    (lambda keys: True, ("num_bootstrap",)),  # intervals of win rates are not drawn any more
    # sdpa was the default before there was auto, and is what auto means wherever it is not refused
    (lambda keys: keys.get("model.attention") in ("auto", "sdpa"), ("model.attention",)),
)
"""When keys have no effect, and which."""


def flat(tree: Mapping[str, Any], prefix: str = "") -> Flat:
    """A tree as ``{dotted key: value}``; lists are values."""
    found: Flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value
    return found


def what_counts(tree: Mapping[str, Any]) -> Flat:
    """The keys of a resolved config that change what is computed."""
    keys = flat({key: value for key, value in tree.items() if key not in FREE_SECTIONS})
    idle = {key for has_none, names in _IDLE if has_none(keys) for key in names}
    idle |= {f"judge.{name}" for name in FREE_OF_SOURCES}
    found = {key: value for key, value in keys.items() if key not in idle}
    if isinstance(sources := found.get("scores"), list):
        found["scores"] = [_without_patience(source) for source in sources]
    return found


def _without_patience(source: Any) -> Any:
    if not isinstance(source, Mapping):
        return source
    return {key: value for key, value in source.items() if key not in FREE_OF_SOURCES}


def read_now(recorded: Mapping[str, Any], config: Section) -> Flat | None:
    """``what_counts`` of a recorded config as this release reads it; None where it would refuse it.

    Args:
        recorded: a tree, or the flat keys of one.
        config: of the same stage; it lends the keys that are free.
    """
    lent = {key: value for key, value in config.model_dump(mode="json").items() if key in FREE_SECTIONS}
    try:
        found = build_config(type(config), {**_tree(what_counts(recorded)), **lent}, source="what was recorded")
    except ConfigError:
        return None
    return what_counts(found.model_dump(mode="json"))


def asks_for_the_same(recorded: Mapping[str, Any], config: Section) -> bool:
    """Whether a recorded config, read by this release, computes what ``config`` does."""
    return read_now(recorded, config) == what_counts(config.model_dump(mode="json"))


def holds_the_same(description: Path, config: Section) -> bool:
    """The same of a run directory's ``config.json``, whose run may have taken over how its models are held.

    False where there is none that can be read.
    """
    try:
        described = json.loads(description.read_text(encoding="utf-8"))
        alike = described.get("config_hash") == config_hash(config)
        return alike or asks_for_the_same(described["config"], as_recorded(config, described["config"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _tree(keys: Flat) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in keys.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree
