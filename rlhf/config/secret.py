"""Secrets in configs: where they are, never what they are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from rlhf.errors import ConfigError

SECRET_ERROR = "secret"
"""Type of the pydantic errors whose input must not be shown."""
SECRET_NAME = re.compile(r"(?:TOKEN|(?:KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL)S?)\d*(?=_|$)", re.IGNORECASE)
"""Names of environment variables that hold a secret, or where one lies: a word of them ends so."""
NAMES_A_FILE = re.compile(r"_(?:PATH|FILE)$", re.IGNORECASE)
"""Those of them that say where it lies."""
_REFERENCE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:.+")
_LITERALS = {
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{16,}"),
    "an API key": re.compile(r"\bsk-(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{16,}"),
    "an AWS key": re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})"),
    "a password in a URL": re.compile(r"[A-Za-z][\w+.-]*://[^\s/:@]*:[^\s/@]+@"),
}
_resolved: set[str] = set()


def _check_reference(value: str) -> str:
    if not _REFERENCE.fullmatch(value):
        raise PydanticCustomError(
            SECRET_ERROR,
            "a secret never stands in a config: write env:NAME (an environment variable) or file:PATH "
            "(a file that holds nothing else)",
        )
    return value


Secret = Annotated[str, AfterValidator(_check_reference)]
"""A config field that names a secret as ``env:NAME`` or ``file:PATH``; anything else is refused, unseen."""


def read_secret(reference: str) -> str:
    """The secret that a reference names; from then on it is masked in every log of this process.

    Raises:
        ConfigError: the variable is not set, the file cannot be read, or there is nothing in it.
    """
    kind, _, place = reference.partition(":")
    if kind == "env":
        value = os.environ.get(place, "").strip()
        missing = f"environment variable {place} is not set or empty: export it in the shell that starts the run"
    else:
        try:
            value = Path(place).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise ConfigError(f"secret {reference}: the file cannot be read ({reason})") from None
        missing = f"the file {place} is empty: write the secret into it, and nothing else"
    if not value:
        raise ConfigError(f"secret {reference}: {missing}")
    if any(not character.isprintable() for character in value):
        raise ConfigError(f"secret {reference}: it holds a line break or a control character; write it as one line")
    _resolved.add(value)
    return value


def resolved_secrets() -> frozenset[str]:
    """What ``read_secret`` has returned in this process."""
    return frozenset(_resolved)


def holds_secret(name: str, value: str) -> bool:
    """Whether an environment variable holds a secret in clear, by its name or by the spelling of its value."""
    by_name = SECRET_NAME.search(name) is not None and NAMES_A_FILE.search(name) is None
    return by_name or describe_literal(value) is not None


def describe_literal(text: str) -> str | None:
    """What kind of secret a text holds in clear, e.g. ``"an API key"``; None when it holds none that is known."""
    return next((kind for kind, pattern in _LITERALS.items() if pattern.search(text)), None)


def mask_literals(text: str, mask: str = "***") -> str:
    """The text with every secret of a known spelling replaced."""
    for pattern in _LITERALS.values():
        text = pattern.sub(lambda found: found[0] if found[0].endswith(f":{mask}@") else mask, text)
    return text


def find_literals(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, kind) of every text in a plain tree that holds a secret in clear."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from find_literals(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from find_literals(value, f"{path}.{index}")
    elif isinstance(tree, str) and (kind := describe_literal(tree)) is not None:
        yield path, kind
