"""Groups: which of a project's tasks are for whom.

An item may carry a group, a short word such as ``da`` or ``medical``: it is given only to people who have that group in
the project, whatever their role. An item without one goes to anybody. Who has which groups is changed by
``memberships.set_groups``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, CompoundSelect, String, bindparam, literal, select, union_all
from sqlalchemy.orm import Session

from preference_ui.errors import DataError, WordedDataError
from preference_ui.events import Transaction
from preference_ui.ids import checked_text
from preference_ui.models import Item, MemberGroup

MAX_CHARACTERS, MAX_GROUPS = 64, 50
# Between the groups of a person in one line of text; the second is what a Chinese keyboard types.
_COMMA = re.compile("[,，]")
# Rows of preferences carry the hash of their prompt as ``group``: what weighs together, not who ranks it.
_DIGEST = re.compile("[0-9a-f]{64}")

_MINE = select(MemberGroup.group).where(
    MemberGroup.project_id == bindparam("project"), MemberGroup.annotator_id == bindparam("who")
)


def checked_group(word: Any, what: str) -> str:
    """A group as it is stored: without outer space, composed characters (NFC); empty for none.

    Raises:
        DataError: not text, too long, or with a comma or a character that cannot be seen.
    """
    if word is None:
        return ""
    text = unicodedata.normalize("NFC", checked_text(word, what).strip())
    if len(text) > MAX_CHARACTERS:
        message = f"{what}: {text[:20]!r}... is longer than {MAX_CHARACTERS} characters; a group is a short word"
        raise WordedDataError(message, "group.long", count=MAX_CHARACTERS)
    if _COMMA.search(text):
        message = f"{what}: {text!r} holds a comma, which stands between the groups of a person; an item has one group"
        raise WordedDataError(message, "group.comma", word=text)
    if not text.isprintable():
        message = f"{what}: {text!r} holds a character that cannot be seen; remove it"
        raise WordedDataError(message, "group.character", word=ascii(text))
    return text


def row_group(word: Any, what: str) -> str:
    """The group of a row of a file; the hash of a prompt, as exported preferences carry it, is none.

    Raises:
        DataError: see ``checked_group``.
    """
    return "" if isinstance(word, str) and _DIGEST.fullmatch(word) else checked_group(word, what)


def checked_groups(words: Iterable[Any], what: str = "groups") -> tuple[str, ...]:
    """A person's groups as they are stored: in order, each once.

    Raises:
        DataError: one does not fit, or there are too many.
    """
    found = tuple(sorted({checked_group(word, what) for word in words} - {""}))
    if len(found) > MAX_GROUPS:
        message = f"{what}: {len(found)} are too many; a person has at most {MAX_GROUPS}"
        raise WordedDataError(message, "group.many", count=MAX_GROUPS)
    return found


def parse_groups(text: str) -> tuple[str, ...]:
    """The groups in a line of words with commas between them.

    Raises:
        DataError: one does not fit, or there are too many.
    """
    if not isinstance(text, str):
        raise DataError(f"groups: expected text, found {type(text).__name__}")
    return checked_groups(_COMMA.split(text))


def open_to(project: Any, who: Any) -> ColumnElement[bool]:
    """Whether an item is for a person; takes ids or bound parameters."""
    mine = select(MemberGroup.group).where(MemberGroup.project_id == project, MemberGroup.annotator_id == who)
    return (Item.group == "") | Item.group.in_(mine)


def my_groups(project: Any, who: Any) -> CompoundSelect[Any]:
    """One row ``word`` per group whose items a person may get; takes ids or bound parameters."""
    mine = select(MemberGroup.group).where(MemberGroup.project_id == project, MemberGroup.annotator_id == who)
    return union_all(select(literal("", String).label("word")), mine)


def open_groups(tx: Transaction, project_id: str, annotator_id: str) -> list[str]:
    """The groups whose items a person may get: none, which stands for items without one, and the person's own."""
    return ["", *tx.run(_MINE, {"project": project_id, "who": annotator_id}).scalars()]


def groups_of(session: Session, project_id: str, annotator_id: str) -> tuple[str, ...]:
    """A person's groups in a project, in order."""
    return tuple(sorted(session.scalars(_MINE, {"project": project_id, "who": annotator_id})))


def groups_by_person(session: Session, project_id: str) -> dict[str, tuple[str, ...]]:
    """Everybody who has groups in a project, by annotator id."""
    found: dict[str, list[str]] = {}
    for who, word in session.execute(
        select(MemberGroup.annotator_id, MemberGroup.group).where(MemberGroup.project_id == project_id)
    ):
        found.setdefault(who, []).append(word)
    return {who: tuple(sorted(words)) for who, words in found.items()}


def words_in_use(session: Session, project_id: str) -> list[str]:
    """The groups that a project's items carry, in order."""
    return sorted(set(session.scalars(select(Item.group).where(Item.project_id == project_id).distinct())) - {""})
