"""The qualification round: who is new to a project answers gold items first, and goes on with enough of them right.

It keeps bad votes out instead of setting them aside later. Who has ranked in the project before, and reviewers and
admins, need no round. With ``qualify_items`` answered it ends by itself, in the transaction of the last answer; a lead
may let somebody pass, or start the round anew with gold items that this person has not seen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import exists, func, insert, select, update
from sqlalchemy.orm import Session, aliased

from preference_ui.db import Store
from preference_ui.errors import DataError, WordedDataError
from preference_ui.events import Transaction
from preference_ui.groups import open_to
from preference_ui.leases import VOTED
from preference_ui.models import Annotator, GoldKey, Item, Judgment, Lease, Membership
from preference_ui.projects import ProjectInfo, load_project
from preference_ui.ranking import follows_key

_EVER = datetime(1970, 1, 1, tzinfo=UTC)
QUALIFYING, QUALIFIED, REFUSED = "qualifying", "qualified", "refused"


@dataclass(frozen=True)
class Standing:
    """How somebody stands; of the round, ``right`` is for leads only."""

    state: str
    answered: int = 0
    right: int = 0


def standing_of(session: Session, project: ProjectInfo, annotator_id: str) -> Standing:
    """How an annotator stands in a project now."""
    if not project.settings.qualify_items:
        return Standing(QUALIFIED)
    row = session.get(Membership, (project.id, annotator_id))
    if row is None:
        return Standing(QUALIFIED if _needs_none(session, project, annotator_id) else QUALIFYING)
    exempt = row.state != QUALIFIED and _is_lead(session, annotator_id)
    return Standing(QUALIFIED if exempt else row.state, row.answered, row.right)


def standings(session: Session, project: ProjectInfo) -> dict[str, Standing]:
    """Everybody who has taken part in a round, or has been let pass, by annotator id."""
    rows = session.scalars(select(Membership).where(Membership.project_id == project.id))
    return {row.annotator_id: Standing(row.state, row.answered, row.right) for row in rows}


def _needs_none(session: Session, project: ProjectInfo, annotator_id: str) -> bool:
    ranked = (
        select(Lease.id)
        .join(Item, Item.id == Lease.item_id)
        .where(
            Lease.annotator_id == annotator_id,
            Lease.state.in_(VOTED),
            Item.project_id == project.id,
            Item.kind == "normal",
        )
        .limit(1)
    )
    return _is_lead(session, annotator_id) or session.scalar(ranked) is not None


def _is_lead(session: Session, annotator_id: str) -> bool:
    return session.scalar(select(Annotator.role).where(Annotator.id == annotator_id)) != "annotator"


def admit(tx: Transaction, project: ProjectInfo, annotator_id: str) -> str:
    """State of a locked annotator who claims; the first claim makes the membership.

    A lead has none for as long as this is the role: with another one the round begins, or goes on.
    """
    if not project.settings.qualify_items or _is_lead(tx.session, annotator_id):
        return QUALIFIED
    row = tx.session.get(Membership, (project.id, annotator_id), populate_existing=True)
    if row is not None:
        # The round may have become shorter, and gold tasks set aside, since the last answer.
        settle(tx, project, annotator_id)
        return row.state
    state = standing_of(tx.session, project, annotator_id).state
    _put(tx, project.id, annotator_id, state)
    tx.record(annotator_id, "membership.begin", "membership", _name(project, annotator_id), {"state": state})
    return state


def settle(tx: Transaction, project: ProjectInfo, annotator_id: str) -> None:
    """Count the round of a locked annotator anew, and end it when it is complete."""
    row = tx.session.get(Membership, (project.id, annotator_id), populate_existing=True)
    settings = project.settings
    if row is None or row.state != QUALIFYING or not settings.qualify_items:
        return
    results = _results(tx.session, row)
    row.answered, row.right = len(results), sum(results)
    if row.answered >= settings.qualify_items:
        passed = row.right >= settings.qualify_share * row.answered
        row.state, row.decided_at = QUALIFIED if passed else REFUSED, tx.now
        payload = {"answered": row.answered, "right": row.right}
        action = "membership.pass" if passed else "membership.refuse"
        tx.record("system", action, "membership", _name(project, annotator_id), payload)
    tx.session.flush()


def round_began(session: Session, project: ProjectInfo, annotator_id: str) -> datetime:
    """Since when answers count in somebody's round; the first one counts them all."""
    row = session.get(Membership, (project.id, annotator_id))
    return row.decided_at if row is not None and row.decided_at is not None else _EVER


def _results(session: Session, row: Membership) -> list[bool]:
    """Of each gold answer of the round whether it is right."""
    earlier = aliased(Judgment)
    query = (
        select(Judgment.tiers_json, GoldKey.tiers_json)
        .join(Lease, (Lease.id == Judgment.lease_id) & (Lease.revision == Judgment.revision))
        .join(Item, Item.id == Lease.item_id)
        .join(GoldKey, GoldKey.item_id == Item.id)
        .where(Lease.annotator_id == row.annotator_id, Lease.state.in_(VOTED), Item.project_id == row.project_id)
    )
    if row.decided_at is not None:
        query = query.where(~exists().where(earlier.lease_id == Lease.id, earlier.created <= row.decided_at))
    return [follows_key(json.loads(tiers), json.loads(key)) for tiers, key in session.execute(query)]


def let_pass(store: Store, project: str, annotator_id: str, *, actor: str) -> None:
    """Let somebody rank without the round, or in spite of it.

    Raises:
        DataError: no such project or person.
    """
    _decide(store, project, annotator_id, QUALIFIED, "membership.let_pass", actor)


def start_anew(store: Store, project: str, annotator_id: str, *, actor: str) -> None:
    """Let somebody take the round (again), with gold items not answered before.

    Raises:
        DataError: no such project or person, or there are too few such items.
    """
    _decide(store, project, annotator_id, QUALIFYING, "membership.retry", actor)


def _decide(store: Store, project: str, annotator_id: str, state: str, action: str, actor: str) -> None:
    def change(tx: Transaction) -> None:
        info = load_project(tx.session, project)
        person = select(Annotator.id).where(Annotator.id == annotator_id).with_for_update()
        if tx.session.scalar(person) is None:
            raise DataError(f"no annotator {annotator_id!r}")
        if state == QUALIFYING:
            _require_gold(tx.session, info, annotator_id)
        values = {"state": state, "decided_at": tx.now} | ({"answered": 0, "right": 0} if state == QUALIFYING else {})
        mine = (Membership.project_id == info.id, Membership.annotator_id == annotator_id)
        if not tx.session.scalar(select(Membership.state).where(*mine)):
            _put(tx, info.id, annotator_id, state)
        tx.session.execute(update(Membership).where(*mine).values(values))
        tx.record(actor, action, "membership", _name(info, annotator_id), {})

    store.transact(change)


def _require_gold(session: Session, project: ProjectInfo, annotator_id: str) -> None:
    count, needed = _new_gold(session, project, annotator_id), project.settings.qualify_items
    if count < needed:
        raise WordedDataError(
            f"{count} gold tasks are new to this person and a round has {needed}: import more gold tasks, make the "
            "round shorter, or let the person pass",
            "round",
            count=count,
            needed=needed,
        )


def _new_gold(session: Session, project: ProjectInfo, annotator_id: str) -> int:
    """How many gold items that somebody may get and has never answered."""
    answered = exists().where(Lease.item_id == Item.id, Lease.annotator_id == annotator_id, Lease.revision > 0)
    query = select(func.count()).where(Item.project_id == project.id, Item.kind == "gold", Item.state == "open")
    return session.scalar(query.where(~answered, open_to(project.id, annotator_id))) or 0


def held_up(session: Session, project: ProjectInfo) -> dict[str, str]:
    """Who waits for a lead, by annotator id: refused, or in a round for which too few gold items are left (gold)."""
    if not project.settings.qualify_items:
        return {}
    waiting = select(Membership).join(Annotator, Annotator.id == Membership.annotator_id).where(
        Membership.project_id == project.id, Membership.state != QUALIFIED,
        Annotator.active, Annotator.role == "annotator",
    )  # fmt: skip
    found = {}
    for row in session.scalars(waiting):
        left = project.settings.qualify_items - row.answered
        if row.state == REFUSED:
            found[row.annotator_id] = REFUSED
        elif _new_gold(session, project, row.annotator_id) < left:
            found[row.annotator_id] = "gold"
    return found


def _put(tx: Transaction, project_id: str, annotator_id: str, state: str) -> None:
    values = {"project_id": project_id, "annotator_id": annotator_id, "state": state, "answered": 0, "right": 0}
    tx.session.execute(insert(Membership).values(values))


def _name(project: ProjectInfo, annotator_id: str) -> str:
    return f"{project.id}/{annotator_id}"
