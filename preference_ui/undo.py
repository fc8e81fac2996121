"""Taking back the newest answer or skip."""

from __future__ import annotations

from sqlalchemy import bindparam, select

from preference_ui import leases, places
from preference_ui.db import Store
from preference_ui.errors import FrozenAnswer, LateAnswer, LeaseError, OtherGroup, TaskTaken
from preference_ui.events import Transaction
from preference_ui.groups import open_groups
from preference_ui.ids import canonical_json, new_id
from preference_ui.models import Item, Lease
from preference_ui.projects import load_project
from preference_ui.qualification import settle
from preference_ui.views import Assignment, assignment_of, judgment_at, stored_vote
from preference_ui.votes import insert_judgment

_LAST = (
    select(Lease.id)
    .join(Item, Item.id == Lease.item_id)
    .where(
        Lease.annotator_id == bindparam("who"),
        Lease.decided_at.is_not(None),
        Item.project_id == bindparam("project"),
    )
    .order_by(Lease.decided_at.desc(), Lease.id.desc())
    .limit(1)
)


def last_decided(store: Store, project: str, annotator_id: str) -> str | None:
    """Lease of the annotator's newest answer or skip in a project: what ``withdraw`` should be asked for."""
    with store.read() as session:
        where = {"who": annotator_id, "project": load_project(session, project).id}
        return session.scalar(_LAST, where)


def refuse_frozen(lease: Lease) -> None:
    """Raises a FrozenAnswer when a dataset holds the lease's answer."""
    if lease.frozen_in is not None:
        raise FrozenAnswer("this answer is part of a frozen dataset and cannot be changed any more")


def withdraw(store: Store, annotator_id: str, lease_id: str) -> Assignment:
    """Take back a vote or a skip and hold its task again, the vote as draft.

    A task held meanwhile is released with its draft. The withdrawn vote stays in the history as a retraction. Asking
    again, because the answer was lost, changes nothing.

    Raises:
        FrozenAnswer: part of a frozen dataset.
        LateAnswer: the vote came late; revise it instead.
        TaskTaken: the skipped task has no room left.
        OtherGroup: the task is for a group that the caller no longer has; an answer can still be revised.
        LeaseError: not the caller's, or neither answered nor skipped.
    """

    def change(tx: Transaction) -> Assignment:
        leases.lock_annotator(tx, annotator_id)
        held = leases.held_lease(tx, annotator_id)
        if held is not None and held != lease_id:
            leases.give_back(tx, annotator_id, held)
        return _withdraw(tx, annotator_id, lease_id)

    return store.transact(change)


def _withdraw(tx: Transaction, annotator_id: str, lease_id: str) -> Assignment:
    lease, item = leases.lock_lease(tx, annotator_id, lease_id)
    project = load_project(tx.session, item.project_id)
    if lease.state == leases.HELD:
        leases.hold(tx, lease, project)
        return assignment_of(tx.session, lease)
    refuse_frozen(lease)
    if item.group not in open_groups(tx, item.project_id, annotator_id):
        raise OtherGroup("this task is for a group that is no longer yours; change the answer instead")
    # Whatever comes of it is decided under the guideline of today, the retraction included.
    lease.guideline_version = project.guideline_version
    if lease.state == "skipped":
        if item.state == "retired" or (item.kind != "gold" and item.active + item.done >= item.needed):
            raise TaskTaken("the task that was skipped needs no more answers")
        if item.state == "review":
            item.state = "open"
        tx.record(annotator_id, "lease.unskip", "lease", lease.id, {"item": item.id})
        lease.skip_reason = None
        step = {"active": 1, "skips": -1}
    elif lease.state == "done":
        _retract(tx, lease)
        step = {"active": 1, "done": -1}
    elif lease.state == "surplus":
        raise LateAnswer("this answer came after its task was complete; change it instead")
    else:
        raise LeaseError("this answer is taken back already; load the page again")
    lease.claimed, lease.decided_at = tx.now, None
    # The item first: its row must have room before the lease counts as held again.
    places.move_item(tx, item, **step)
    leases.hold(tx, lease, project)
    if item.kind == "gold":
        settle(tx, project, annotator_id)
    return assignment_of(tx.session, lease)


def _retract(tx: Transaction, lease: Lease) -> None:
    """Add the retraction of the lease's vote, and keep the vote as draft."""
    vote, previous = stored_vote(tx.session, lease), judgment_at(tx.session, lease)
    if vote is None or previous is None:
        raise LeaseError("this answer is not in the store; load the page again")
    lease.revision += 1
    judgment_id = new_id()
    columns = {
        "id": judgment_id, "lease_id": lease.id, "revision": lease.revision, "retracted": True,
        "supersedes": previous.id, "guideline_version": lease.guideline_version, "wall_ms": 0,
    }  # fmt: skip
    digest = insert_judgment(tx, vote, leases.shown_order(lease), columns)
    lease.draft_json, lease.draft_at = canonical_json(vote.as_dict()), tx.now
    tx.record(
        lease.annotator_id, "judgment.retract", "judgment", judgment_id,
        {"lease": lease.id, "item": lease.item_id, "revision": lease.revision, "digest": digest},
    )  # fmt: skip
