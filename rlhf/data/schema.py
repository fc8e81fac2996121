"""The rows that every stage reads and that the annotation page writes: small, frozen, checked at birth.

Nothing here needs a tensor or a tokenizer, so collecting preferences starts as fast as a text editor.

A row that has no chat turns, only text to go on from (``"Once upon a time"``), is a prompt with one
message of role ``"text"``. A chat style shows that text as a user turn; the style ``"plain"`` feeds it to
the model as it stands.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf.errors import DataError

ROLES = ("system", "user", "assistant", "text")


class RowError(DataError):
    """One row does not fit.

    Args:
        field: name of the field at fault, e.g. ``"messages[2].content"``.
        reason: what is wrong with it, in few words and without the value's full text.
        remedy: what the owner of the data can do about it.
    """

    def __init__(self, field: str, reason: str, remedy: str = "") -> None:
        super().__init__(field, reason, remedy)
        self.field = field
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        tail = f"; {self.remedy}" if self.remedy else ""
        return f"field '{self.field}': {self.reason}{tail}"


def describe(value: object) -> str:
    """Return a short name for a wrong value: a text itself, else its type (a nested value may be too deep to print)."""
    return f"{value!r:.60}" if isinstance(value, str) else type(value).__name__


def check_text(value: object, field: str) -> str:
    """Return ``value`` when it is text that every later step can carry.

    Raises:
        RowError: not a string, empty or blank, holding NUL, or holding half of a surrogate pair.
    """
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise RowError(field, f"is {kind}, text is wanted", "write it as a JSON string")
    if not value.strip():
        raise RowError(field, "is empty" if not value else "holds only white space", "fill it or remove the row")
    _check_characters(value, field)
    return value


def _check_characters(value: str, field: str) -> None:
    if "\0" in value:
        raise RowError(field, "holds a NUL character", "remove it")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(
            field, f"holds a lone surrogate at character {error.start}", "write the text as valid UTF-8"
        ) from None


def _check_number(value: object, field: str, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(field, f"is {type(value).__name__}, a number is wanted", "write it as a JSON number")
    try:
        fits = math.isfinite(value) and low <= value <= high
    except OverflowError:  # an int beyond the range of a double
        fits = False
    if not fits:
        raise RowError(field, f"lies outside [{low:g}, {high:g}]", "correct it or leave the field out")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Args:
        role: one of ``system``, ``user``, ``assistant``, ``text`` (a prompt without turns).
        content: what was said; never blank.
    """

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise RowError("role", f"is {describe(self.role)}", f"use one of {', '.join(ROLES)}")
        check_text(self.content, "content")

    def as_dict(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


def prompt_hash(messages: Sequence[Message]) -> str:
    """Name a prompt by its content: sha256 of canonical JSON, as 64 hex digits.

    A ``text`` prompt and the same words as a ``user`` turn get one name, so that a data set kept in two
    formats cannot put one prompt on both sides of a split.
    """
    turns = [["user" if m.role == "text" else m.role, m.content] for m in messages]
    canonical = json.dumps(turns, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def _check_id(value: object) -> None:
    check_text(value, "id")


def _check_prompt(messages: object, field: str) -> None:
    if not isinstance(messages, tuple) or not all(isinstance(m, Message) for m in messages):
        raise RowError(field, "is not a tuple of Message", "build it with tuple(...)")
    if not messages:
        raise RowError(field, "has no message", "a prompt needs at least one user turn")
    if any(m.role == "text" for m in messages) and len(messages) > 1:
        raise RowError(field, "mixes a 'text' message with chat turns", "use role 'user' in a conversation")
    if messages[-1].role not in ("user", "text"):
        raise RowError(field, f"ends with a {messages[-1].role} turn", "the turn to be answered must be the user's")


@dataclass(frozen=True, slots=True)
class PromptRow:
    """Something to answer.

    Args:
        id: unique within a data set.
        messages: the turns so far; the last one is the user's (or the only one is ``text``).
        meta: whatever else the file said about it, JSON values only; reward functions may read it.
    """

    id: str
    messages: tuple[Message, ...]
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_id(self.id)
        _check_prompt(self.messages, "messages")
        _check_meta(self.meta)

    @property
    def prompt(self) -> tuple[Message, ...]:
        return self.messages

    def as_dict(self) -> dict[str, Any]:
        """Return a record that ``load_prompts`` reads back as this row."""
        return {"id": self.id, "prompt": [m.as_dict() for m in self.messages], "meta": dict(self.meta)}


@dataclass(frozen=True, slots=True)
class DemonstrationRow:
    """A conversation to imitate, every assistant turn of it; the last message is the assistant's."""

    id: str
    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        _check_id(self.id)
        if not isinstance(self.messages, tuple) or not self.messages:
            raise RowError("messages", "is not a filled tuple of Message", "build it with tuple(...)")
        last = self.messages[-1]
        if not isinstance(last, Message) or last.role != "assistant":
            raise RowError("messages", "does not end with an assistant turn", "add the answer to be learnt")
        _check_prompt(self.messages[:-1], "messages")

    @property
    def prompt(self) -> tuple[Message, ...]:
        return self.messages[:-1]

    @property
    def response(self) -> str:
        return self.messages[-1].content

    def as_dict(self) -> dict[str, Any]:
        """Return a record that ``load_demonstrations`` reads back as this row."""
        return {"id": self.id, "messages": [m.as_dict() for m in self.messages]}


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """Two responses to one prompt and how surely the first is the better.

    Args:
        id: unique within a data set.
        prompt: the turns both responses answer.
        chosen: the response called better.
        rejected: the other one.
        probability: soft label in [0, 1] that ``chosen`` is preferred; 0.5 is a tie, 1 a plain judgment.
        margin: how much better, in units of the score (0 = unknown); the reward loss asks for this distance.
        weight: non-negative factor of this row's loss.
        group: rows of one group weigh together what one judgment weighs; by default the prompt's hash.
    """

    id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    probability: float = 1.0
    margin: float = 0.0
    weight: float = 1.0
    group: str = ""

    def __post_init__(self) -> None:
        _check_id(self.id)
        _check_prompt(self.prompt, "prompt")
        check_text(self.chosen, "chosen")
        check_text(self.rejected, "rejected")
        _check_number(self.probability, "probability", 0.0, 1.0)
        _check_number(self.margin, "margin", 0.0, 1e6)
        _check_number(self.weight, "weight", 0.0, 1e6)
        # Frozen: the default depends on another field, so it is filled in through the base class.
        object.__setattr__(self, "group", self.group if self.group != "" else prompt_hash(self.prompt))
        check_text(self.group, "group")

    def as_dict(self) -> dict[str, Any]:
        """Return a record that ``load_preferences`` reads back as this row."""
        return {
            "id": self.id,
            "prompt": [m.as_dict() for m in self.prompt],
            "chosen": self.chosen,
            "rejected": self.rejected,
            "probability": self.probability,
            "margin": self.margin,
            "weight": self.weight,
            "group": self.group,
        }


Row = PromptRow | DemonstrationRow | PreferenceRow


def _check_meta(meta: object) -> None:
    if not isinstance(meta, Mapping) or not all(isinstance(key, str) for key in meta):
        raise RowError("meta", "is not an object with text keys", "write it as a JSON object")
    try:
        text = json.dumps(meta, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        name = next((key for key, value in meta.items() if not _is_json(value)), "")
        raise RowError(
            "meta", f"{name!r:.60} holds a value that JSON cannot hold", "keep text, numbers, lists and objects"
        ) from None
    try:
        _check_characters(text, "meta")
    except RowError as error:
        name = next((key for key, value in meta.items() if not _is_clean(key, value)), "")
        raise RowError("meta", f"{name!r:.60} {error.reason}", error.remedy) from None


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _is_clean(*parts: object) -> bool:
    try:
        _check_characters(json.dumps(parts, ensure_ascii=False), "meta")
    except RowError:
        return False
    return True
