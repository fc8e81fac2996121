"""Who can take a task: what the lead's pages count on, when they say that nobody is left."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, String, and_, bindparam, exists, func, select
from sqlalchemy.orm import Session, aliased

from preference_ui import leases
from preference_ui.models import Annotator, Item, Lease, MemberGroup, Membership
from preference_ui.projects import ProjectInfo

# Whoever skipped, answered or holds an item does not get it again.
_HAD_IT = (
    exists()
    .where(Lease.item_id == Item.id, Lease.annotator_id == Annotator.id, Lease.state.not_in(leases.GIVEN_BACK))
    .correlate(Item, Annotator)
)
_other = aliased(Item)
_RANKED_HERE = Annotator.id.in_(
    select(Lease.annotator_id)
    .join(_other, _other.id == Lease.item_id)
    .where(_other.project_id == bindparam("project"), Lease.state.in_(leases.VOTED))
)
# Leads who never ranked in the project are not counted on. Accounts without a password cannot log in.
_OUTSIDE = exists().where(
    bindparam("round") > 0, Annotator.role == "annotator", Membership.project_id == bindparam("project"),
    Membership.annotator_id == Annotator.id, Membership.state != "qualified",
)  # fmt: skip
_RANKS = and_(
    Annotator.active,
    ~_OUTSIDE.correlate(Annotator),
    Annotator.password_hash.is_not(None),
    (Annotator.role == "annotator") | _RANKED_HERE,
)


def _has(group: Any) -> ColumnElement[bool]:
    """Whether a person has a group; everybody has none."""
    mine = exists().where(
        MemberGroup.project_id == bindparam("project"), MemberGroup.annotator_id == Annotator.id,
        MemberGroup.group == group,
    )  # fmt: skip
    return (group == "") | mine.correlate(Annotator, Item)


_GROUP = bindparam("group", type_=String)
# Whether anybody is left to take an item.
TAKERS = exists().where(_RANKS, _has(Item.group), ~_HAD_IT).correlate(Item)
_TAKE_GROUP = and_(_RANKS, _has(_GROUP))
_NUM_TAKERS = select(func.count()).select_from(Annotator).where(_TAKE_GROUP)
_RAREST = (
    select(Annotator.id)
    .where(_TAKE_GROUP)
    .order_by(
        select(func.count())
        .where(Lease.annotator_id == Annotator.id, Lease.state.not_in(leases.GIVEN_BACK))
        .scalar_subquery()
    )
    .limit(1)
)


def of_project(info: ProjectInfo) -> dict[str, object]:
    """The parameters of a project in every query with ``TAKERS``."""
    return {"project": info.id, "round": info.settings.qualify_items}


def num_takers(session: Session, info: ProjectInfo, group: str) -> int:
    """How many people get tasks of a group."""
    return session.scalar(_NUM_TAKERS, {**of_project(info), "group": group}) or 0


def rarest_takers(session: Session, info: ProjectInfo) -> dict[str, str]:
    """By group, of those who get its tasks the one who has had the fewest; groups without anybody are left out.

    A task of the group that nobody is left to take is among that person's.
    """
    given = select(MemberGroup.group).where(MemberGroup.project_id == info.id).distinct()
    groups = ["", *session.scalars(given)]
    found = {group: session.scalar(_RAREST, {**of_project(info), "group": group}) for group in groups}
    return {group: who for group, who in found.items() if who is not None}
