"""What is wrong with a config, in the words of the person who wrote it: key, value, rule, nearest name."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from rlhf.config.base import NAMED, SECTION
from rlhf.config.secret import SECRET_ERROR, describe_literal

_SHOWN = 80
_MEMBERS = ("one file", "list of files", "list of sources", "constrained-str")
"""Pydantic's names for members of unions that are not sections."""
_SECRET_WORDS = ("token", "secret", "password", "api_key", "apikey", "credential")


def known_keys(cls: type[BaseModel], prefix: str = "") -> list[str]:
    """All dotted keys that a section accepts."""
    keys: list[str] = []
    for name, field in cls.model_fields.items():
        keys.append(prefix + name)
        for sub in sections_in(field.annotation):
            keys.extend(known_keys(sub, f"{prefix}{name}."))
    return keys


def explain_all(cls: type[BaseModel], problems: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line per key that is wrong.

    Args:
        problems: pydantic's ``errors()``; a value that fits no member of a union is there once per member.
    """
    lines: dict[str, list[str]] = {}
    places = [_where(cls, problem["loc"]) for problem in problems]
    for problem, where in zip(problems, places, strict=True):
        inner = any(other.startswith(f"{where}.") for other in places)
        if problem["type"] == "too_short" and inner:
            continue  # the list is short because its entry was refused
        lines.setdefault(where, []).append(_explain(cls, problem, where))
    return [_joined(where, found) for where, found in lines.items()]


def _joined(where: str, found: list[str]) -> str:
    first, *rest = dict.fromkeys(found)
    same = f"{where}: "
    return " or ".join([first, *(line.removeprefix(same) for line in rest)])


def _explain(cls: type[BaseModel], problem: Mapping[str, Any], where: str) -> str:
    kind, message = problem["type"], str(problem["msg"]).removeprefix("Value error, ")
    if kind == "extra_forbidden":
        near = _nearest(where, known_keys(cls))
        return f"unknown key {where!r}" + (f"; did you mean {near!r}?" if near else "")
    if kind == "missing":
        return f"{where} is required"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        context = problem.get("ctx", {})
        tags = [tag.strip(" '") for tag in str(context.get("expected_tags", "")).split(",")]
        close = difflib.get_close_matches(str(context.get("tag", "")), tags, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{where}.kind: {message}{hint}" if "tag" in context else f"{where}.kind is required"
    if problem.get("input", "") is None and kind.endswith("_type"):
        return f"{where}: no value is given (got None): write one, or leave the key out if it has a default"
    return f"{where}: {message}{_shown(problem, where)}"


def _shown(problem: Mapping[str, Any], where: str) -> str:
    given = problem.get("input")
    if not isinstance(given, str | int | float | bool | None):
        return ""
    private = problem["type"] == SECRET_ERROR or any(word in where.lower() for word in _SECRET_WORDS)
    if private or (isinstance(given, str) and describe_literal(given) is not None):
        return ""
    text = repr(given)
    return f" (got {text if len(text) <= _SHOWN else text[:_SHOWN] + '...'})"


def _where(cls: type[BaseModel], loc: Sequence[str | int]) -> str:
    """The dotted key of a problem, without pydantic's names for the members of a union."""
    parts: list[str] = []
    sections: list[type[BaseModel]] = [cls]
    inside_union = False
    for part in loc:
        if part in (NAMED, SECTION):
            continue
        if isinstance(part, int):
            parts.append(str(part))
            inside_union = len(sections) > 1
            continue
        if part in _MEMBERS or part.startswith("tuple["):
            continue
        tagged = [section for section in sections if _tag(section) == part]
        if inside_union and tagged:
            sections, inside_union = tagged, False
            continue
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        if not sections and parts:
            continue  # "str", "tuple[str, ...]": members of a union of plain types
        parts.append(part)
        sections = [sub for field in fields for sub in sections_in(field.annotation)]
        inside_union = len(sections) > 1
    return ".".join(parts) or "config"


def _tag(section: type[BaseModel]) -> str | None:
    field = section.model_fields.get("kind")
    return None if field is None else str(field.default)


def _nearest(where: str, known: list[str]) -> str | None:
    """The known key that was meant: indices of lists are left out, a key in the wrong section is found by its name."""
    plain = ".".join(part for part in where.split(".") if not part.isdigit())
    *parents, last = plain.split(".")
    siblings = [key for key in known if key.rsplit(".", 1)[:-1] == ([".".join(parents)] if parents else [])]
    by_name = {key.rsplit(".", 1)[-1]: key for key in siblings}
    if near := difflib.get_close_matches(last, by_name, n=1, cutoff=0.7):
        return by_name[near[0]]
    if same := [key for key in known if key.rsplit(".", 1)[-1] == last]:
        return same[0]
    found = difflib.get_close_matches(plain, known, n=1, cutoff=0.5)
    return found[0] if found else None


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field may hold, in unions and lists, too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple, list, typing.Annotated):
        return [found for part in typing.get_args(annotation) for found in sections_in(part)]
    return []
