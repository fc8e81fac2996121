"""YAML plus dotted overrides into a frozen config, with errors that name the key and the remedy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from rlhf.config.base import Section
from rlhf.config.explain import explain_all, known_keys
from rlhf.config.other_words import own_words
from rlhf.config.override import apply_override
from rlhf.config.secret import find_literals, mask_literals
from rlhf.config.stages import STAGES
from rlhf.config.strict_yaml import read_strict_yaml, write_strict_yaml
from rlhf.errors import ConfigError

__all__ = ["build_config", "config_hash", "dump_yaml", "known_keys", "load_config", "read_tree"]


def load_config(stage: str, path: str | Path | None, overrides: Iterable[str] = ()) -> Any:
    """Reads one stage's config.

    Args:
        stage: a key of ``STAGES``.
        path: a YAML file, or None to start from defaults and overrides alone.
        overrides: ``dotted.key=value`` strings (``apply_override``).

    Raises:
        ConfigError: for an unreadable file, an unknown key (with the nearest known name), or a broken rule.
    """
    if stage not in STAGES:
        raise ConfigError(f"unknown stage {stage!r}; known: {', '.join(STAGES)}")
    tree = _read_yaml(Path(path)) if path is not None else {}
    for item in overrides:
        tree = own_words(tree, STAGES[stage])
        apply_override(tree, item, STAGES[stage])
    found = tree.setdefault("stage", stage)
    if found != stage:
        raise ConfigError(f"{path} is a config for stage {found!r}, not {stage!r}: run 'rlhf {found} --config {path}'")
    return build_config(STAGES[stage], tree, source=str(path or "command line, without --config FILE"))


def build_config(cls: type[Section], tree: Mapping[str, Any], *, source: str) -> Any:
    """Validates a plain tree against a section, turning every problem into one ConfigError.

    A value is never bent to fit: text is no number, ``true`` is no 1, and 2.0 is no count.
    """
    tree = own_words(tree, cls)
    try:
        # JSON is the one form in which pydantic is strict about scalars and still takes lists for tuples
        found = cls.model_validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        lines = explain_all(cls, [dict(problem) for problem in error.errors()])
        raise ConfigError(f"{source}: {len(lines)} problem(s)\n" + "\n".join(f"  - {line}" for line in lines)) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: cannot be a config ({type(error).__name__}: {error})") from None
    for key, kind in find_literals(found.model_dump(mode="json")):
        raise ConfigError(
            f"{source}: {key} holds {kind} in clear, and configs are stored with every run: take it out and, if it was "
            "ever shared, revoke it; secrets belong in environment variables or files"
        )
    return found


def stage_of(file: str | Path) -> str:
    """The stage that a config file names.

    Raises:
        ConfigError: the file is not readable YAML, or its ``stage`` is none that there is.
    """
    tree = read_tree(file)
    stage = tree.get("stage") if isinstance(tree, dict) else None
    if not isinstance(stage, str) or stage not in STAGES:
        raise ConfigError(f"{file}: the key 'stage' must be one of {', '.join(STAGES)}, got {stage!r}")
    return stage


def is_pipeline(file: str | Path) -> bool:
    """Whether a file holds a pipeline of steps rather than one stage's config."""
    tree = read_tree(file)
    return isinstance(tree, dict) and tree.get("stage") == "pipeline"


def read_tree(file: str | Path) -> object:
    """What a YAML file holds, unchecked.

    Raises:
        ConfigError: there is no such file, or it is not readable YAML.
    """
    return _parsed(Path(file), yaml.safe_load)


def _parsed(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist; the shipped ones are under configs/") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} is not readable YAML: {mask_literals(str(error))}") from None


def config_hash(config: BaseModel) -> str:
    """sha256 over the canonical JSON of the resolved config."""
    return hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def dump_yaml(config: BaseModel) -> str:
    """The resolved config as YAML, every default written out."""
    return write_strict_yaml(config.model_dump(mode="json"))


def _read_yaml(path: Path) -> dict[str, Any]:
    tree = _parsed(path, read_strict_yaml)
    if not isinstance(tree, dict):
        raise ConfigError(f"config file {path} must hold a mapping of keys to values")
    return tree
