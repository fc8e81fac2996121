"""Keys that have another word (``data.preferences`` is ``data.train``): written as the config's own, before anything
else reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import AliasChoices, BaseModel

from rlhf.config.explain import sections_in
from rlhf.errors import ConfigError


def own_word(key: str, cls: type[BaseModel]) -> str:
    """A dotted key with the config's own words."""
    sections: list[type[BaseModel]] = [cls]
    found = []
    for part in key.split("."):
        found.append(_own(part, sections))
        if not part.isdecimal():
            sections = _below(found[-1], sections)
    return ".".join(found)


def own_words(tree: Mapping[str, Any], cls: type[BaseModel]) -> dict[str, Any]:
    """A copy of a plain tree with the config's own words; values that are no sections are shared.

    Raises:
        ConfigError: a key is there in both words.
    """
    return dict(_renamed(tree, [cls], ""))


def _renamed(value: Any, sections: Sequence[type[BaseModel]], where: str) -> Any:
    if isinstance(value, list):  # of sections; a list within holds none
        return [
            _renamed(entry, sections, f"{where}{number}.") if isinstance(entry, Mapping) else entry
            for number, entry in enumerate(value)
        ]
    if not isinstance(value, Mapping) or not sections:
        return value
    found: dict[Any, Any] = {}
    for key, below in value.items():
        name = _own(key, sections)
        if name != key and name in value:
            raise ConfigError(f"{where}{key} is another word for {where}{name}: give one of the two")
        found[name] = _renamed(below, _below(name, sections), f"{where}{name}.")
    return found


def _own(part: Any, sections: Sequence[type[BaseModel]]) -> Any:
    for section in sections:
        for name, field in section.model_fields.items():
            alias = field.validation_alias
            if part != name and isinstance(alias, AliasChoices) and part in alias.choices:
                return name
    return part


def _below(name: Any, sections: Sequence[type[BaseModel]]) -> list[type[BaseModel]]:
    fields = [section.model_fields[name] for section in sections if name in section.model_fields]
    return [below for field in fields for below in sections_in(field.annotation)]
