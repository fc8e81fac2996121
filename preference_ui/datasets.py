"""Frozen versions as a lead sees them: who made each, of what, and the files to take away."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import select

from preference_ui import formats
from preference_ui.db import Store
from preference_ui.errors import DataError
from preference_ui.models import Annotator, DatasetVersion, Event
from preference_ui.projects import load_project
from preference_ui.versions import get_version, load_version

VERSION_FILES = ("preferences.jsonl", "judgments.jsonl", "manifest.json")
"""What may be taken away of a version."""
_PREFERENCES = VERSION_FILES[0]


@dataclass(frozen=True)
class VersionLine:
    """One frozen version in a list.

    Attributes:
        actor: name of the account that froze it, or ``command line``.
        num_tasks: tasks with votes in it; None: frozen by a program that did not count them.
        num_retired: tasks with votes that it leaves out because they were retired; None: it leaves none out.
    """

    number: int
    created: datetime
    actor: str
    num_tasks: int | None
    num_judgments: int
    num_rows: int
    votes: str
    ties: str
    is_weighted: bool
    has_edits: bool
    num_retired: int | None
    sha256: str


def version_lines(store: Store, project: str) -> list[VersionLine]:
    """All frozen versions of a project, newest first."""
    with store.read() as session:
        info = load_project(session, project)
        rows = session.execute(
            select(DatasetVersion, Event.actor, Event.payload_json, Annotator.handle)
            .join(Event, Event.entity_id == DatasetVersion.id)
            .outerjoin(Annotator, Annotator.id == Event.actor)
            .where(DatasetVersion.project_id == info.id, Event.action == "dataset.freeze")
            .order_by(DatasetVersion.number.desc())
        ).all()
    return [_line(row, handle or actor, json.loads(noted)) for row, actor, noted, handle in rows]


def _line(row: DatasetVersion, actor: str, noted: dict[str, int]) -> VersionLine:
    options = json.loads(row.options_json)
    keeps_retired = options.get("with_retired", True)  # versions of earlier programs knew no retired tasks
    return VersionLine(
        number=row.number,
        created=row.created,
        actor=actor,
        num_tasks=noted.get("num_tasks"),
        num_judgments=row.num_judgments,
        num_rows=row.num_rows,
        votes=options["votes"],
        ties=options["ties"],
        is_weighted=bool(options["reliability"]),
        has_edits=options["include_edits"],
        num_retired=None if keeps_retired else len(options["retired_left_out"]),
        sha256=row.sha256,
    )


def version_file(store: Store, project: str, number: int, name: str) -> Path | bytes:
    """A file of a frozen version: where it lies, or its bytes when only the store has them.

    Preferences are checked by their digest first; lost or altered ones are rebuilt.

    Raises:
        DataError: no such version or file, or it is lost.
    """
    if name not in VERSION_FILES:
        raise DataError(f"{name!r} is not one of {', '.join(VERSION_FILES)}")
    version = get_version(store, project, number)
    path = version.path / name
    if name != _PREFERENCES:
        if path.is_file():
            return path
        raise DataError(f"{name} of version v{number} is lost; restore its folder from a backup of the store")
    if path.is_file() and _digest(path) == version.sha256:
        return path
    return formats.to_jsonl(load_version(store, project, number))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
