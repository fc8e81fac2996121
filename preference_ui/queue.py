"""The annotation queue: claim, vote, skip, undo. Every call is one transaction, authorised by person and lease.

Nothing here loads torch, ray or gradio. An ``Assignment`` is all that a page may know: texts in the order shown
and a lease id. Which response came from which model, which item is gold, and who else voted stay in the store.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from preference_ui import leases, places
from preference_ui.db import Store
from preference_ui.drafts import save_draft
from preference_ui.errors import LeaseError, TooSoon, VoteConflict
from preference_ui.events import Transaction
from preference_ui.ids import checked_text, new_id
from preference_ui.models import Item, Judgment, Lease
from preference_ui.progress import Progress, progress
from preference_ui.projects import ProjectInfo, load_project
from preference_ui.qualification import QUALIFIED, QUALIFYING, REFUSED, admit, round_began, settle
from preference_ui.ranking import mean_agreement
from preference_ui.undo import last_decided, refuse_frozen, withdraw
from preference_ui.views import (
    Assignment,
    HistoryEntry,
    Receipt,
    assignment_of,
    history,
    judgment_at,
    stored_vote,
)
from preference_ui.votes import Vote, check_vote, content_digest, insert_judgment, vote_content

__all__ = [
    "Assignment",
    "HistoryEntry",
    "Progress",
    "Receipt",
    "Vote",
    "claim",
    "history",
    "last_decided",
    "progress",
    "recall",
    "release",
    "release_held",
    "renew",
    "reserve",
    "save_draft",
    "skip",
    "submit",
    "withdraw",
]


def _claim(
    tx: Transaction, project: ProjectInfo, annotator_id: str, *, may_hold: bool = True, reserved: bool = False
) -> Assignment | None:
    """Claim for a locked annotator. ``may_hold=False`` when the caller just closed the only lease held."""
    state = admit(tx, project, annotator_id)
    held = leases.held_lease(tx, annotator_id) if may_hold else None
    if held is not None:
        lease, item = leases.lock_lease(tx, annotator_id, held)
        keep = not (reserved and leases.has_reserved(tx, annotator_id, project))
        keep = keep and (state != QUALIFYING or item.kind == "gold")  # the round began while it was held
        if keep and item.project_id == project.id and lease.state == leases.HELD:
            leases.hold(tx, lease, project)
            return assignment_of(tx.session, lease)
        leases.give_back(tx, annotator_id, held)
    leases.expire_stale(tx)
    if state == REFUSED:
        return None
    since = round_began(tx.session, project, annotator_id) if state == QUALIFYING else None
    found = leases.resume_given_back(tx, annotator_id, project, in_round_since=since)
    if found is None:
        chosen = leases.choose(tx, annotator_id, project, only_gold=since is not None)
        if chosen is not None:
            found = leases.lease_item(tx, annotator_id, project, *chosen)
        elif since is not None:
            found = leases.resume_skipped_gold(tx, annotator_id, project, since)
    return None if found is None else assignment_of(tx.session, found)


def claim(store: Store, project: str, annotator_id: str, *, reserved: bool = False) -> Assignment | None:
    """Give the annotator something to rank.

    Who holds a task already gets that one again (a reloaded page, a second tab). Returns None when there is
    nothing left for this person.

    Args:
        reserved: rather take what ``reserve`` keeps, at once; a task held meanwhile is given back with its draft.

    Raises:
        LeaseError: the account is not active.
        DataError: there is no such project.
    """

    def change(tx: Transaction) -> Assignment | None:
        leases.lock_annotator(tx, annotator_id)
        return _claim(tx, load_project(tx.session, project), annotator_id, reserved=reserved)

    return store.transact(change)


def renew(store: Store, annotator_id: str, lease_id: str) -> datetime:
    """Extend the hold; returns its new end.

    Raises:
        LeaseError: not the caller's, or no longer held (claim again; the draft is kept).
    """

    def change(tx: Transaction) -> datetime:
        lease, item = leases.lock_lease(tx, annotator_id, lease_id)
        if lease.state != leases.HELD:
            raise LeaseError("this task is no longer held; load the page again, the draft is kept")
        leases.hold(tx, lease, load_project(tx.session, item.project_id))
        return lease.expires

    return store.transact(change)


def release(store: Store, annotator_id: str, lease_id: str) -> None:
    """Give a held task back early, e.g. when the page closes. The draft stays for a return."""
    store.transact(lambda tx: leases.give_back(tx, annotator_id, lease_id))


def release_held(store: Store, annotator_id: str) -> None:
    """Give back whatever the annotator holds, e.g. at logout. The draft stays for a return."""

    def change(tx: Transaction) -> None:
        held = leases.held_lease(tx, annotator_id)
        if held is not None:
            leases.give_back(tx, annotator_id, held)

    store.transact(change)


def reserve(store: Store, project: str, annotator_id: str, item_id: str) -> None:
    """Keep one open item for the person who asked for it: the next claim brings it. A task held stays held.

    Raises:
        LeaseError: the account is closed, or the item is full, not open, not for this person's groups, or was shown
            to this person before.
    """

    def change(tx: Transaction) -> None:
        leases.lock_annotator(tx, annotator_id)
        info = load_project(tx.session, project)
        if admit(tx, info, annotator_id) != QUALIFIED:
            raise LeaseError("the qualification round of this project comes first")
        leases.reserve_item(tx, annotator_id, info, leases.lock_free_item(tx, annotator_id, info, item_id))

    store.transact(change)


def skip(store: Store, annotator_id: str, lease_id: str, reason: str, *, claim_next: bool = False) -> Assignment | None:
    """Decline a held task for good; enough skips by different people send it to the lead.

    Raises:
        LeaseError: not the caller's, or already answered.
    """
    checked_text(reason, "reason")

    def change(tx: Transaction) -> Assignment | None:
        leases.lock_annotator(tx, annotator_id)
        lease, item = leases.lock_lease(tx, annotator_id, lease_id)
        project = load_project(tx.session, item.project_id)
        if lease.state != "skipped":
            if lease.state in leases.VOTED:
                raise LeaseError("this task is answered already; undo the answer first")
            was_held = lease.state == leases.HELD
            lease.state, lease.skip_reason, lease.decided_at = "skipped", reason, tx.now
            tx.session.flush()
            places.move_item(tx, item, active=-1 if was_held else 0, skips=1)
            if item.kind == "normal" and item.state == "open" and item.skips >= project.settings.max_skips:
                item.state = "review"
                tx.session.flush()
            tx.record(annotator_id, "lease.skip", "lease", lease.id, {"item": item.id, "reason": reason})
        return _claim(tx, project, annotator_id) if claim_next else None

    return store.transact(change)


def _refuse_bad_revision(tx: Transaction, lease: Lease, revision: int, project: ProjectInfo) -> None:
    refuse_frozen(lease)
    if revision != lease.revision + 1:
        raise VoteConflict(f"this task is at revision {lease.revision}, not {revision - 1}; load the page again")
    if lease.state == "skipped":
        raise LeaseError("this task was skipped; undo the skip first")
    if lease.state == leases.HELD and 0 <= (tx.now - lease.claimed).total_seconds() < project.settings.min_seconds:
        raise TooSoon(f"please take at least {project.settings.min_seconds:g} seconds for a task")


def _place_vote(tx: Transaction, lease: Lease, item: Item) -> None:
    """Move the lease to done, or to surplus when the item has no room left for a late vote."""
    if lease.state in leases.VOTED:
        tx.session.flush()
        return
    if lease.state == leases.HELD:
        lease.state, step = "done", (-1, 1)
    elif places.has_room(item):
        lease.state, step = "done", (0, 1)
    else:
        lease.state, step = "surplus", (0, 0)
    places.move_item(tx, item, active=step[0], done=step[1])


def _agreement(session: Session, item_id: str) -> float:
    rows = session.scalars(
        select(Judgment.tiers_json)
        .join(Lease, Lease.id == Judgment.lease_id)
        .where(Lease.item_id == item_id, Lease.state.in_(leases.VOTED), Judgment.revision == Lease.revision)
    )
    return mean_agreement([json.loads(text) for text in rows])


def _submit(tx: Transaction, annotator_id: str, lease_id: str, vote: Vote, revision: int, claim_next: bool) -> Receipt:
    leases.lock_annotator(tx, annotator_id)
    lease, item = leases.lock_lease(tx, annotator_id, lease_id)
    project = load_project(tx.session, item.project_id)
    order = json.loads(lease.permutation_json)
    check_vote(vote, len(order), project.settings)
    was_held = lease.state == leases.HELD
    stored = judgment_at(tx.session, lease, revision) if 1 <= revision <= lease.revision else None
    if stored is not None:
        if stored.digest != content_digest(vote_content(vote, order)):
            raise VoteConflict("another vote is stored for this task; load the page again to change it")
        judgment_id = stored.id
    else:
        _refuse_bad_revision(tx, lease, revision, project)
        previous = judgment_at(tx.session, lease) if lease.revision else None
        judgment_id = new_id()
        lease.revision, lease.draft_json, lease.draft_at, lease.decided_at = revision, None, None, tx.now
        if lease.state in leases.VOTED:
            lease.guideline_version = project.guideline_version
        _place_vote(tx, lease, item)
        digest = insert_judgment(
            tx,
            vote,
            order,
            {
                "id": judgment_id,
                "lease_id": lease.id,
                "revision": revision,
                "retracted": False,
                "supersedes": previous.id if previous else None,
                "guideline_version": lease.guideline_version,
                "wall_ms": min(2**31 - 1, max(0, int((tx.now - lease.claimed).total_seconds() * 1000))),
            },
        )
        tx.record(
            annotator_id,
            "judgment.submit",
            "judgment",
            judgment_id,
            {
                "lease": lease.id,
                "item": item.id,
                "revision": revision,
                "state": lease.state,
                "digest": digest,
            },
        )
        if item.kind == "gold":
            settle(tx, project, annotator_id)
        if item.state == "done" and project.settings.adaptive_extra:
            agreement = _agreement(tx.session, item.id)
            # A late vote may fill the place at once.
            while places.extend_on_disagreement(tx, item, agreement, project):
                pass
    # A replay may find its lease held again: the answer was taken back in another tab.
    closed = was_held and lease.state != leases.HELD
    following = _claim(tx, project, annotator_id, may_hold=not closed) if claim_next else None
    return Receipt(judgment_id, revision, stored is not None, lease.state != "surplus", following)


def submit(
    store: Store, annotator_id: str, lease_id: str, vote: Vote, revision: int = 1, *, claim_next: bool = False
) -> Receipt:
    """Store a vote, or with a higher ``revision`` a changed one. On return it is on disk.

    The same vote for the same lease and revision may come any number of times and is stored once. A vote after
    the hold ended is kept. With ``claim_next`` the next task is claimed in the same transaction.

    Raises:
        LeaseError: not the caller's, skipped, or frozen.
        TooSoon: sooner after the claim than the project's ``min_seconds``.
        VoteConflict: a different vote holds this revision, or the revision is not the next one.
        DataError: the vote does not fit the task.
    """
    return store.transact(lambda tx: _submit(tx, annotator_id, lease_id, vote, revision, claim_next))


def _own_lease(session: Session, annotator_id: str, lease_id: str) -> Lease:
    lease = session.scalar(select(Lease).where(Lease.id == lease_id, Lease.annotator_id == annotator_id))
    if lease is None:
        raise LeaseError("this task is not yours; load the page again")
    return lease


def recall(store: Store, annotator_id: str, lease_id: str) -> Assignment:
    """Show an own answered task again, so that it can be revised with ``submit``.

    The draft is an unfinished change if ``save_draft`` kept one, else the vote. The stored vote stays valid until the
    revision arrives, which carries the guideline version then in force.

    Raises:
        FrozenAnswer: part of a frozen dataset.
        LeaseError: not the caller's.
    """
    with store.read() as session:
        lease = _own_lease(session, annotator_id, lease_id)
        refuse_frozen(lease)
        vote = None if lease.draft_json else stored_vote(session, lease)
        task = assignment_of(session, lease, draft=vote.as_dict() if vote else None)
        # The version that the changed answer will carry.
        return replace(task, guideline_version=load_project(session, task.project_id).guideline_version)
