"""The lead's inbox: items whose raters disagree or that people skipped, and decisions on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import and_, bindparam, exists, func, insert, select, update
from sqlalchemy.orm import Session, aliased

from preference_ui import leases
from preference_ui.db import Store
from preference_ui.errors import DataError
from preference_ui.events import Transaction
from preference_ui.export import JudgmentRecord, read_snapshot
from preference_ui.ids import checked_text, new_id
from preference_ui.models import Annotator, Decision, Item, ItemResponse, Lease, Prompt
from preference_ui.projects import add_guideline, load_project
from preference_ui.ranking import mean_agreement
from rlhf.data.schema import Message

VERDICTS = ("guideline_unclear", "rater_error", "subjective")


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
_TAKERS = exists().where(
    Annotator.active,
    Annotator.password_hash.is_not(None),
    (Annotator.role == "annotator") | _RANKED_HERE,
    ~_HAD_IT,
)
_WAITING = select(Item.id).where(
    Item.project_id == bindparam("project"),
    Item.kind == "normal",
    (Item.state == "review") | and_(Item.state == "open", Item.skips > 0, Item.active == 0, ~_TAKERS.correlate(Item)),
)


@dataclass(frozen=True)
class InboxEntry:
    """An item that wants a decision.

    Attributes:
        agreement: mean pair agreement of its raters, in [0, 1].
        responses: ``(response id, text)`` in import order.
        votes: what each rater said.
        skip_reasons: why people skipped it.
    """

    item_id: str
    prompt: tuple[Message, ...]
    responses: tuple[tuple[str, str], ...]
    agreement: float
    votes: tuple[JudgmentRecord, ...]
    skip_reasons: tuple[str, ...]


def _settled(session: Session) -> set[str]:
    """Items that are out of the queue for good, or whose newest decision nobody has answered or skipped since."""
    decided = select(Decision.item_id, func.max(Decision.created).label("at")).group_by(Decision.item_id).subquery()
    newer = (Lease.item_id == decided.c.item_id) & (Lease.decided_at > decided.c.at)
    quiet = select(decided.c.item_id).outerjoin(Lease, newer).where(Lease.id.is_(None))
    return {*session.scalars(quiet), *session.scalars(select(Item.id).where(Item.state == "retired"))}


def inbox(store: Store, project: str, *, below: float = 0.75, limit: int = 100) -> list[InboxEntry]:
    """Items that want a decision, the worst first.

    They are those whose raters agree less than ``below``, until a decision that is newer than all votes and skips;
    those that ``max_skips`` people skipped; and skipped ones that nobody is left to take.
    """
    with store.read() as session:
        snapshot = read_snapshot(session, project)
        by_item: dict[str, list[JudgmentRecord]] = {}
        for record in snapshot.of_kind("normal"):
            by_item.setdefault(record.item_id, []).append(record)
        scores = {i: mean_agreement([r.tiers for r in records]) for i, records in by_item.items()}
        disputed = {i for i, score in scores.items() if score < below} - _settled(session)
        wanted = disputed | set(session.scalars(_WAITING, {"project": snapshot.project.id}))
        order = sorted(wanted, key=lambda i: (scores.get(i, 1.0), i))[:limit]
        entries = []
        for item_id in order:
            messages = session.scalars(
                select(Prompt.messages_json).join(Item, Item.prompt_id == Prompt.id).where(Item.id == item_id)
            ).one()
            members = session.scalars(
                select(ItemResponse.response_id).where(ItemResponse.item_id == item_id).order_by(ItemResponse.position)
            )
            reasons = session.scalars(
                select(Lease.skip_reason).where(Lease.item_id == item_id, Lease.state == "skipped")
            )
            entries.append(
                InboxEntry(
                    item_id=item_id,
                    prompt=tuple(Message(m["role"], m["content"]) for m in json.loads(messages)),
                    responses=tuple((r, snapshot.texts[r]) for r in members),
                    agreement=scores.get(item_id, 1.0),
                    votes=tuple(by_item.get(item_id, ())),
                    skip_reasons=tuple(reason or "" for reason in reasons),
                )
            )
        return entries


def decide(
    store: Store,
    item_id: str,
    verdict: str,
    note: str,
    *,
    decided_by: str,
    new_guideline: str | None = None,
    retire: bool = False,
) -> int:
    """Rule on an item; with ``new_guideline`` the ruling also publishes a guideline version.

    Args:
        retire: take the item out of the queue for good. Otherwise an item that still needs votes goes on, its skips
            forgotten: those who skipped it are asked again.

    Returns:
        The guideline version in force after the decision.

    Raises:
        DataError: an unknown item or verdict.
    """
    if verdict not in VERDICTS:
        raise DataError(f"verdict {verdict!r} is not one of {', '.join(VERDICTS)}")
    checked_text(note, "note")

    def change(tx: Transaction) -> int:
        item = tx.session.scalar(select(Item).where(Item.id == item_id).with_for_update())
        if item is None:
            raise DataError(f"no item {item_id!r}")
        version = load_project(tx.session, item.project_id).guideline_version
        if new_guideline is not None:
            checked_text(new_guideline, "guideline")
            version = add_guideline(tx, item.project_id, new_guideline, note, decided_by)
        if retire:
            item.state = "retired"
        elif item.state in ("review", "open"):
            _reopen(tx, item)
        tx.session.flush()
        tx.session.execute(
            insert(Decision).values(
                id=new_id(),
                item_id=item_id,
                verdict=verdict,
                note=note,
                decided_by=decided_by,
                guideline_version=version,
                created=tx.now,
            )
        )
        tx.record(decided_by, "item.decide", "item", item_id, {"verdict": verdict, "note": note, "guideline": version})
        return version

    return store.transact(change)


def _reopen(tx: Transaction, item: Item) -> None:
    item.state = "done" if item.done >= item.needed else "open"
    item.skips = 0
    again = {"state": "released", "skip_reason": None, "decided_at": None}
    tx.session.execute(update(Lease).where(Lease.item_id == item.id, Lease.state == "skipped").values(again))


def decisions(store: Store, item_id: str) -> Sequence[Decision]:
    """Decisions taken on an item, oldest first."""
    with store.read() as session:
        return session.scalars(select(Decision).where(Decision.item_id == item_id).order_by(Decision.id)).all()
