"""What the store tells one annotator: the task as shown, receipts and own history."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from preference_ui.db import Store
from preference_ui.leases import VOTED
from preference_ui.models import Flag, Item, Judgment, Lease, Prompt, Rating, Response, ResponseEdit
from preference_ui.projects import load_project
from preference_ui.votes import Vote
from rlhf.data.schema import Message


@dataclass(frozen=True)
class Assignment:
    """A task as shown to one annotator.

    Attributes:
        lease_id: names the task in every later call.
        prompt: the conversation to answer.
        responses: texts by slot, in the order this annotator sees for ever.
        revision: number that the next ``submit`` must carry (1 for the first vote).
        expires: when the hold ends unless renewed; a later vote is still kept.
        draft: what ``save_draft`` stored, or the vote being revised, as ``Vote.as_dict`` gives it.
        guideline_version: the version in force when it was claimed.
    """

    lease_id: str
    project_id: str
    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    revision: int
    expires: datetime
    draft: dict[str, Any] | None
    guideline_version: int
    language: str = ""


@dataclass(frozen=True)
class Receipt:
    """Proof that a vote is on disk.

    Attributes:
        judgment_id: the stored row.
        revision: 1 for a first vote, more for a changed mind.
        duplicate: the same vote had been stored before (double click, replay); nothing was added.
        counted: False when the vote came late and the item was complete without it; it is kept all the same.
        next: the next task when ``claim_next`` was asked.
    """

    judgment_id: str
    revision: int
    duplicate: bool
    counted: bool
    next: Assignment | None = None


@dataclass(frozen=True)
class HistoryEntry:
    """One of the annotator's own answers, newest first in ``history``."""

    lease_id: str
    voted: datetime
    revision: int
    frozen: bool
    opening: str


_PROMPT = (
    select(Prompt.messages_json, Prompt.language, Item.project_id)
    .join(Item, Item.prompt_id == Prompt.id)
    .where(Item.id == bindparam("item"))
)
_TEXTS = select(Response.id, Response.text).where(Response.id.in_(bindparam("ids", expanding=True)))


def assignment_of(session: Session, lease: Lease, draft: dict[str, Any] | None = None) -> Assignment:
    """The lease as its holder sees it."""
    order = json.loads(lease.permutation_json)
    messages, language, project_id = session.connection().execute(_PROMPT, {"item": lease.item_id}).one()
    texts = {row.id: row.text for row in session.connection().execute(_TEXTS, {"ids": order})}
    if draft is None and lease.draft_json:
        draft = json.loads(lease.draft_json)
    return Assignment(
        lease_id=lease.id,
        project_id=project_id,
        prompt=tuple(Message(m["role"], m["content"]) for m in json.loads(messages)),
        responses=tuple(texts[r] for r in order),
        revision=lease.revision + 1,
        expires=lease.expires,
        draft=draft,
        guideline_version=lease.guideline_version,
        language=language,
    )


def judgment_at(session: Session, lease: Lease, revision: int | None = None) -> Judgment | None:
    """A lease's judgment at a revision, by default the newest."""
    return session.scalar(
        select(Judgment).where(Judgment.lease_id == lease.id, Judgment.revision == (revision or lease.revision))
    )


def stored_vote(session: Session, lease: Lease) -> Vote | None:
    """The lease's latest vote, in slots."""
    judgment = judgment_at(session, lease) if lease.revision else None
    if judgment is None:
        return None
    slot = {r: i for i, r in enumerate(json.loads(lease.permutation_json))}
    ratings: dict[int, dict[str, int]] = {}
    for row in session.scalars(select(Rating).where(Rating.judgment_id == judgment.id)):
        ratings.setdefault(slot[row.response_id], {})[row.axis] = row.value
    flags = session.scalars(select(Flag).where(Flag.judgment_id == judgment.id).order_by(Flag.id))
    edits = session.scalars(select(ResponseEdit).where(ResponseEdit.judgment_id == judgment.id))
    return Vote(
        tiers=[sorted(slot[r] for r in tier) for tier in json.loads(judgment.tiers_json)],
        strength=judgment.strength,
        all_bad=judgment.all_bad,
        rationale=judgment.rationale,
        ratings=ratings,
        # Flags on the whole item first, then by slot.
        flags=sorted(
            ((slot[f.response_id] if f.response_id else None, f.code) for f in flags),
            key=lambda flag: (-1 if flag[0] is None else flag[0], flag[1]),
        ),
        edits={slot[e.response_id]: e.text for e in edits},
        active_ms=judgment.active_ms,
    )


def history(store: Store, annotator_id: str, project: str, limit: int = 20, *, skip: int = 0) -> Sequence[HistoryEntry]:
    """The annotator's own answers in a project, newest first, for revising; ``skip`` leaves out that many."""
    with store.read() as session:
        rows = session.execute(
            select(Lease, Lease.decided_at, Prompt.messages_json)
            .join(Item, Item.id == Lease.item_id)
            .join(Prompt, Prompt.id == Item.prompt_id)
            .where(
                Lease.annotator_id == annotator_id,
                Lease.state.in_(VOTED),
                Item.project_id == load_project(session, project).id,
            )
            .order_by(Lease.decided_at.desc(), Lease.id.desc())
            .limit(limit)
            .offset(skip)
        ).all()
        return [
            HistoryEntry(
                lease.id,
                voted,
                lease.revision,
                lease.frozen_in is not None,
                json.loads(messages)[-1]["content"][:80],
            )
            for lease, voted, messages in rows
            if voted is not None
        ]
