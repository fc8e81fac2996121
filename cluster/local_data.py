"""Whether data that stages read is on this machine, or will be written by a step before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from cluster.package import DATA_KEYS, matches, paths_in
from rlhf.errors import ConfigError


def refuse_missing(step: str, tree: Mapping[str, Any], made: Sequence[str]) -> None:
    """Looks for the data of a stage's config, ``store:`` projects left out.

    Args:
        tree: the config as plain JSON values.
        made: directories that the pipeline writes itself.

    Raises:
        ConfigError: a file or glob that matches nothing.
    """
    for key, text in paths_in(tree):
        written = any(PurePath(text).is_relative_to(folder) for folder in made)
        if key in DATA_KEYS and not (written or text.startswith("store:") or matches(text, Path.cwd())):
            raise ConfigError(
                f"step {step!r}: {key}={text} names nothing here: give the file that you mean in the step's overrides"
                + (" (rlhf quickstart writes this one)" if text.startswith("runs/quickstart/data/") else "")
            )
