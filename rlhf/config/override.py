"""``dotted.key=value`` on the command line: values are YAML where they must be, plain text where text is wanted."""

from __future__ import annotations

import types
import typing
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rlhf.config.explain import sections_in
from rlhf.config.other_words import own_word
from rlhf.config.secret import describe_literal, mask_literals
from rlhf.config.strict_yaml import read_strict_yaml
from rlhf.errors import ConfigError

_OPENS_YAML = ("[", "{", '"', "'")


def apply_override(tree: dict[str, Any], item: str, cls: type[BaseModel]) -> None:
    """Puts one override into a plain tree; a number in a key names an entry of a list that is there.

    Args:
        tree: in the config's own words (``own_words``).
        cls: the section that the tree is to become.

    Raises:
        ConfigError: it does not look like ``dotted.key=value``, or its key leads nowhere.
    """
    key, separator, text = item.partition("=")
    shown = repr(item) if describe_literal(item) is None else "that holds a secret in clear"
    if not separator or not key:
        raise ConfigError(f"override {shown} must look like dotted.key=value")
    key = own_word(key, cls)
    value = _value(text, _fields(cls, key), shown)
    node: Any = tree
    parts = key.split(".")
    for depth, part in enumerate(parts[:-1], start=1):
        where = ".".join(parts[:depth])
        at: Any = _index(node, part, where, shown) if isinstance(node, list) else part
        below = node[at] if isinstance(node, list) else node.get(part)
        if below is None and parts[depth].isdecimal() and _fields(cls, where):
            raise ConfigError(f"override {shown}: no list {where!r} is given, so it has no entry to change: write it "
                              f"whole, {where}=[...]")  # fmt: skip
        if below is None:
            below = node[at] = {}
        if not isinstance(below, dict | list):
            raise ConfigError(f"override {shown}: {part!r} holds a value, not a section")
        node = below
    node[_index(node, parts[-1], key, shown) if isinstance(node, list) else parts[-1]] = value


def _index(entries: list[Any], part: str, where: str, shown: str) -> int:
    parent = where.rpartition(".")[0]
    if not part.isdecimal():
        raise ConfigError(f"override {shown}: {parent!r} is a list: name one of its entries by number, {parent}.0=...")
    if int(part) >= len(entries):
        has = f"{len(entries)} entries (0 to {len(entries) - 1})" if len(entries) > 1 else f"{len(entries)} entry (0)"
        raise ConfigError(f"override {shown}: {parent!r} has {has if entries else 'no entry'}, there is no {part}")
    return int(part)


def _value(text: str, fields: list[FieldInfo], shown: str) -> Any:
    """The text as YAML; as it stands where the key wants text and YAML would make something else of it."""
    if not text:
        return None
    opens = text.lstrip().startswith(_OPENS_YAML)
    try:
        value = read_strict_yaml(text)
    except yaml.YAMLError as error:
        if not opens:
            return text.strip()  # e.g. *.jsonl, which would be an alias
        raise ConfigError(
            f"override {shown}: the value is not YAML: {mask_literals(str(error))}; close what it opens, or write "
            "text that begins so in quotes: key='\"...\"'"
        ) from None
    is_text = bool(fields) and all(_wants_text(field.annotation) for field in fields)
    return text.strip() if is_text and not opens and value is not None else value


def _wants_text(annotation: Any) -> bool:
    """Whether text is allowed, and no number or truth value is."""
    plain = set(_plain_types(annotation))
    return str in plain and not plain & {int, float, bool}


def _plain_types(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _plain_types(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [found for part in typing.get_args(annotation) for found in _plain_types(part)]
    return [annotation]


def _fields(cls: type[BaseModel], key: str) -> list[FieldInfo]:
    """What a key may stand for; several where a list holds sections of several kinds."""
    sections: list[type[BaseModel]] = [cls]
    found: list[FieldInfo] = []
    for part in key.split("."):
        if part.isdecimal():
            found = []
            continue
        found = [section.model_fields[part] for section in sections if part in section.model_fields]
        sections = [below for field in found for below in sections_in(field.annotation)]
    return found
