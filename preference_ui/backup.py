"""Online backup, and proof that what the store holds is whole and unaltered."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import case, func, select, text
from sqlalchemy.orm import Session

from preference_ui.db import Store
from preference_ui.errors import StoreError
from preference_ui.events import check_chain, head
from preference_ui.models import Event, Flag, Item, Judgment, Lease, Rating, ResponseEdit
from preference_ui.votes import content_digest


@dataclass(frozen=True)
class Verification:
    """Outcome of ``verify``. Keep ``head_seq`` and ``head_hash`` elsewhere: a later check against them also
    notices that the newest events were cut off together with what they record.
    """

    events: int
    judgments: int
    head_seq: int
    head_hash: str
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def backup(store: Store, target: str | Path) -> Path:
    """Copy a SQLite store while it is in use; every vote acknowledged before the call is in the copy.

    The copy appears under its name only when it is complete and on disk.

    Raises:
        StoreError: the target exists, or the store is on PostgreSQL (use ``pg_dump``).
    """
    path = Path(target)
    if store.path is None:
        raise StoreError("this store is on PostgreSQL; back it up with pg_dump")
    if path.exists():
        raise StoreError(f"{path} exists; a backup never replaces a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    with closing(sqlite3.connect(store.path, timeout=30)) as source, closing(sqlite3.connect(partial)) as copy:
        source.backup(copy)
        # One self-contained file: without this it would expect a write-ahead log beside it.
        copy.execute("PRAGMA journal_mode=DELETE")
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return path


def verify(store: Store, expected_head: tuple[int, str] | None = None) -> Verification:
    """Check the hash chain, every judgment against its event, and the queue's invariants.

    Args:
        expected_head: sequence number and hash noted at an earlier time; the event must still be there.
    """
    problems: list[str] = []
    with store.read() as session:
        good, broken = check_chain(session)
        if broken:
            problems.append(f"hash chain: {broken}")
        seq, digest = head(session)
        if expected_head is not None:
            found = session.scalar(select(Event.hash).where(Event.seq == expected_head[0]))
            if found != expected_head[1]:
                problems.append(f"hash chain: event {expected_head[0]} is not the one noted earlier")
        problems += _check_judgments(session)
        problems += _check_counts(session)
        if not store.is_postgres:
            problems += [
                f"database: {row[0]}" for row in session.execute(text("PRAGMA integrity_check")) if row[0] != "ok"
            ]
            problems += [
                f"database: broken reference in {row[0]}" for row in session.execute(text("PRAGMA foreign_key_check"))
            ]
        judgments = session.scalar(select(func.count()).select_from(Judgment)) or 0
    return Verification(good, judgments, seq, digest, problems)


def _recomputed(
    judgment: Judgment,
    ratings: list[tuple[str, str, int]],
    flags: list[tuple[str, str]],
    edits: list[tuple[str, str]],
) -> str:
    content = {
        "tiers": json.loads(judgment.tiers_json),
        "strength": judgment.strength,
        "all_bad": judgment.all_bad,
        "rationale": judgment.rationale,
        "ratings": sorted(list(r) for r in ratings),
        "flags": sorted(list(f) for f in flags),
        "edits": sorted(list(e) for e in edits),
    }
    return content_digest(content, judgment.retracted)


def _check_judgments(session: Session) -> list[str]:
    recorded = {
        row.entity_id: json.loads(row.payload_json).get("digest")
        for row in session.execute(select(Event.entity_id, Event.payload_json).where(Event.entity == "judgment"))
    }
    ratings: dict[str, list[tuple[str, str, int]]] = {}
    for r in session.scalars(select(Rating)):
        ratings.setdefault(r.judgment_id, []).append((r.response_id, r.axis, r.value))
    flags: dict[str, list[tuple[str, str]]] = {}
    for f in session.scalars(select(Flag)):
        flags.setdefault(f.judgment_id, []).append((f.response_id or "", f.code))
    edits: dict[str, list[tuple[str, str]]] = {}
    for e in session.scalars(select(ResponseEdit)):
        edits.setdefault(e.judgment_id, []).append((e.response_id, e.text))
    problems = []
    for judgment in session.scalars(select(Judgment)):
        key = judgment.id
        actual = _recomputed(judgment, ratings.get(key, []), flags.get(key, []), edits.get(key, []))
        noted = recorded.pop(key, None)
        if noted is None:
            problems.append(f"judgment {key}: no event records it")
        elif not noted == judgment.digest == actual:
            problems.append(f"judgment {key}: its content is not what was recorded")
    problems += [f"judgment {key}: recorded, but gone" for key in recorded]
    return problems


def _check_counts(session: Session) -> list[str]:
    active = func.coalesce(func.sum(case((Lease.state == "active", 1), else_=0)), 0)
    done = func.coalesce(func.sum(case((Lease.state == "done", 1), else_=0)), 0)
    rows = session.execute(select(Item, active, done).outerjoin(Lease, Lease.item_id == Item.id).group_by(Item.id))
    problems = []
    for item, num_active, num_done in rows:
        if (item.active, item.done) != (num_active, num_done):
            problems.append(
                f"item {item.id}: counts {item.active} active and {item.done} done, "
                f"its leases say {num_active} and {num_done}"
            )
        if item.kind != "gold" and item.active + item.done > item.needed:
            problems.append(f"item {item.id}: more raters than needed")
    latest = (
        select(Judgment.lease_id, func.max(Judgment.revision).label("revision"), func.count().label("rows"))
        .group_by(Judgment.lease_id)
        .subquery()
    )
    leases = session.execute(
        select(Lease.id, Lease.state, Lease.revision, Lease.decided_at, latest.c.revision, latest.c.rows).outerjoin(
            latest, latest.c.lease_id == Lease.id
        )
    )
    for lease_id, state, revision, decided_at, newest, rows_stored in leases:
        if revision != (newest or 0) or (newest or 0) != (rows_stored or 0):
            problems.append(f"lease {lease_id}: its revisions have a gap")
        if state in ("done", "surplus") and not newest:
            problems.append(f"lease {lease_id}: done without a judgment")
        if (state in ("done", "surplus", "skipped")) != (decided_at is not None):
            problems.append(f"lease {lease_id}: it is {state}, and the time of its answer says otherwise")
    return problems
