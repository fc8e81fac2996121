"""The lead's inbox: items whose raters disagree, that people skipped, that nobody is left to take; and decisions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import and_, bindparam, func, insert, select, update
from sqlalchemy.orm import Session

from preference_ui import leases, places
from preference_ui.agreements import Agreements, current_votes
from preference_ui.db import Store
from preference_ui.errors import AlreadyDecided, DataError
from preference_ui.events import Transaction
from preference_ui.export import JudgmentRecord, read_snapshot
from preference_ui.guidelines import add_guideline
from preference_ui.ids import checked_text, new_id
from preference_ui.models import Annotator, Decision, Flag, Item, ItemResponse, Judgment, Lease, Prompt
from preference_ui.projects import ProjectInfo, load_project
from preference_ui.ranking import mean_agreement
from preference_ui.set_aside import set_one_aside
from preference_ui.takers import TAKERS, of_project, rarest_takers
from rlhf.data.schema import Message

VERDICTS = ("guideline_unclear", "rater_error", "subjective")


_LEFT_OVER = and_(
    Item.project_id == bindparam("project"), Item.kind == "normal", Item.state == "open", Item.active == 0, ~TAKERS
)
_WAITING = select(Item.id).where(
    Item.project_id == bindparam("project"),
    Item.kind == "normal",
    (Item.state == "review") | and_(Item.skips > 0, _LEFT_OVER),
)
_STRANDED = select(Item.id).where(
    Item.id.in_(
        select(Lease.item_id).where(Lease.annotator_id == bindparam("rarest"), Lease.state.not_in(leases.GIVEN_BACK))
    ),
    Item.group == bindparam("group"),
    _LEFT_OVER,
)


@dataclass(frozen=True)
class InboxEntry:
    """An item that wants a decision.

    Attributes:
        agreement: mean pair agreement of its raters, in [0, 1].
        responses: ``(response id, text)`` in import order.
        votes: what each rater said.
        skip_reasons: why people skipped it.
        num_decisions: decisions taken on it before.
        is_short: it is open, and has fewer votes than it asks for.
    """

    item_id: str
    prompt: tuple[Message, ...]
    responses: tuple[tuple[str, str], ...]
    agreement: float
    votes: tuple[JudgmentRecord, ...]
    skip_reasons: tuple[str, ...]
    num_decisions: int
    is_short: bool


@dataclass(frozen=True)
class Seen:
    """What somebody who decides had on the screen; see ``decide``.

    Attributes:
        guideline_version: the version that a new guideline was written from; None: not looked at.
        num_decisions: how many decisions the item had.
    """

    guideline_version: int | None
    num_decisions: int


def _settled(session: Session) -> set[str]:
    """Items that are out of the queue for good, or whose newest decision nobody has answered or skipped since."""
    decided = select(Decision.item_id, func.max(Decision.created).label("at")).group_by(Decision.item_id).subquery()
    newer = (Lease.item_id == decided.c.item_id) & (Lease.decided_at > decided.c.at)
    quiet = select(decided.c.item_id).outerjoin(Lease, newer).where(Lease.id.is_(None))
    return {*session.scalars(quiet), *session.scalars(select(Item.id).where(Item.state == "retired"))}


def _stranded(session: Session, info: ProjectInfo) -> set[str]:
    """Open items that everybody who could take them has had.

    Without anybody who can rank there are none yet, nor of a group that nobody has: the overview says that of the whole
    group, once.
    """
    found: set[str] = set()
    for group, rarest in rarest_takers(session, info).items():
        found.update(session.scalars(_STRANDED, {**of_project(info), "group": group, "rarest": rarest}))
    return found


def inbox(
    store: Store, project: str, *, below: float = 0.75, limit: int = 100, known: Agreements | None = None
) -> list[InboxEntry]:
    """Items that want a decision, the worst first; then those with a flag.

    They are those whose raters agree less than ``below``, until a decision that is newer than all votes and skips;
    those that ``max_skips`` people skipped; and skipped ones that nobody is left to take. Then those with a flag, and
    last those with too few votes that nobody is left to take though nobody skipped them.

    Args:
        limit: of items in dispute, again of items that are only flagged, and again of the last: none hides another.
        known: what an earlier reading left, so that only changed items are read.
    """
    with store.read() as session:
        info = load_project(session, project)
        scores, settled = (known or Agreements()).read(session, info.id), _settled(session)
        waiting = set(session.scalars(_WAITING, of_project(info)))
        disputed = {i for i, score in scores.items() if score < below} - settled | waiting
        order = sorted(disputed, key=lambda i: (scores.get(i, 1.0), i))[:limit]
        flagged = flagged_items(session, info.id) - disputed - settled
        order += sorted(flagged)[:limit]
        order += sorted(_stranded(session, info) - disputed - flagged - settled)[:limit]
        return _entries(session, info, order)


def entry_of(store: Store, project: str, item_id: str) -> InboxEntry | None:
    """One item with its votes; None when the project has no such item."""
    with store.read() as session:
        return next(iter(_entries(session, load_project(session, project), [item_id])), None)


def flagged_items(session: Session, project_id: str) -> set[str]:
    """Items with a flag in a vote that counts now."""
    return set(session.scalars(current_votes(project_id).join(Flag, Flag.judgment_id == Judgment.id).distinct()))


def _entries(session: Session, info: ProjectInfo, order: Sequence[str]) -> list[InboxEntry]:
    """Items in the order given, read together; those of other projects are left out."""
    snapshot = read_snapshot(session, info.id, item_ids=order)
    votes: dict[str, list[JudgmentRecord]] = {}
    for record in snapshot.judgments:
        votes.setdefault(record.item_id, []).append(record)
    found = session.execute(
        select(Item.id, Prompt.messages_json, Item.state)
        .join(Prompt, Prompt.id == Item.prompt_id)
        .where(Item.project_id == info.id, Item.id.in_(order))
    )
    prompts, states = {}, {}
    for item_id, messages, state in found:
        prompts[item_id], states[item_id] = messages, state
    members: dict[str, list[tuple[str, str]]] = {}
    for item_id, response_id in session.execute(
        select(ItemResponse.item_id, ItemResponse.response_id)
        .where(ItemResponse.item_id.in_(prompts))
        .order_by(ItemResponse.item_id, ItemResponse.position)
    ):
        members.setdefault(item_id, []).append((response_id, snapshot.texts[response_id]))
    skips: dict[str, list[str]] = {}
    for item_id, reason in session.execute(
        select(Lease.item_id, Lease.skip_reason).where(Lease.item_id.in_(prompts), Lease.state == "skipped")
    ):
        skips.setdefault(item_id, []).append(reason or "")
    counts = Counter(session.scalars(select(Decision.item_id).where(Decision.item_id.in_(prompts))))
    return [
        InboxEntry(
            item_id=item_id,
            prompt=tuple(Message(m["role"], m["content"]) for m in json.loads(prompts[item_id])),
            responses=tuple(members[item_id]),
            agreement=mean_agreement([record.tiers for record in votes.get(item_id, ())]),
            votes=tuple(votes.get(item_id, ())),
            skip_reasons=tuple(skips.get(item_id, ())),
            num_decisions=counts[item_id],
            is_short=states[item_id] == "open",
        )
        for item_id in order
        if item_id in prompts
    ]


def decide(
    store: Store,
    item_id: str,
    verdict: str,
    note: str,
    *,
    decided_by: str,
    new_guideline: str | None = None,
    retire: bool = False,
    aside: Collection[str] = (),
    one_more: bool = False,
    seen: Seen | None = None,
) -> int:
    """Rule on an item; with ``new_guideline`` the ruling also publishes a guideline version.

    Args:
        retire: take the item out of the queue for good. Otherwise an item that still needs votes goes on, its skips
            forgotten: those who skipped it are asked again.
        aside: judgment ids of votes to set aside, with the note as reason. Their places are free, and their authors are
            asked again; on a retired item nobody is.
        one_more: ask for one more vote, beyond all that the project's settings ask for.
        seen: refuse when the guideline or the decisions on the item are no longer those that the caller looked at.

    Returns:
        The guideline version in force after the decision.

    Raises:
        DataError: an unknown item or verdict, or votes to set aside without a note.
        StaleVote: a vote to set aside is not the one that counts now.
        AlreadyDecided, StaleGuideline: somebody else was faster, see ``seen``; nothing is stored.
    """
    if verdict not in VERDICTS:
        raise DataError(f"verdict {verdict!r} is not one of {', '.join(VERDICTS)}")
    checked_text(note, "note")

    def change(tx: Transaction) -> int:
        item = tx.session.scalar(select(Item).where(Item.id == item_id).with_for_update())
        if item is None:
            raise DataError(f"no item {item_id!r}")
        if seen is not None:
            _refuse_decided(tx, item_id, seen)
        version = load_project(tx.session, item.project_id).guideline_version
        if new_guideline is not None:
            checked_text(new_guideline, "guideline")
            based_on = seen.guideline_version if seen is not None else None
            version = add_guideline(tx, item.project_id, new_guideline, note, decided_by, based_on)
        for judgment_id in aside:
            set_one_aside(tx, item, judgment_id, actor=decided_by, reason=note)
        if one_more:
            places.ask_one_more(tx, item)
        if retire:
            places.retire(tx, item)
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
        tx.record(
            decided_by,
            "item.decide",
            "item",
            item_id,
            {"verdict": verdict, "note": note, "guideline": version, "retired": retire, "needed": item.needed},
        )
        return version

    return store.transact(change)


def _reopen(tx: Transaction, item: Item) -> None:
    places.reopen(tx, item)
    item.skips = 0
    again = {"state": "released", "skip_reason": None, "decided_at": None}
    tx.session.execute(update(Lease).where(Lease.item_id == item.id, Lease.state == "skipped").values(again))


def _refuse_decided(tx: Transaction, item_id: str, seen: Seen) -> None:
    """The caller holds the item's row, so nobody decides at the same time."""
    handles = tx.session.scalars(
        select(Annotator.handle)
        .join(Decision, Decision.decided_by == Annotator.id)
        .where(Decision.item_id == item_id)
        .order_by(Decision.id)
    ).all()
    if len(handles) > seen.num_decisions:
        raise AlreadyDecided(handles[-1])


def decisions(store: Store, item_id: str) -> Sequence[Decision]:
    """Decisions taken on an item, oldest first."""
    with store.read() as session:
        return session.scalars(select(Decision).where(Decision.item_id == item_id).order_by(Decision.id)).all()
