"""Giving people the groups of a project, and taking them away."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import delete, insert, select

from preference_ui.db import Store
from preference_ui.errors import DataError, StaleAccount
from preference_ui.events import SET_GROUPS, Transaction
from preference_ui.groups import checked_groups, groups_of
from preference_ui.models import Annotator, MemberGroup
from preference_ui.projects import load_project


def set_groups(
    store: Store,
    project: str,
    annotator_id: str,
    groups: Iterable[str],
    *,
    actor: str,
    seen: Iterable[str] | None = None,
) -> tuple[str, ...]:
    """Replace a person's groups in a project; returns them as they are now. Nothing is recorded where none changes.

    The next claim follows them. A task that the person holds stays theirs to answer, and an answer that was begun is
    kept however late it comes; once given back, a task of a group that they no longer have goes to others.

    Args:
        seen: the groups as the caller looked at them: refuse when they are others by now.

    Raises:
        DataError: no such project or person, or a word that is no group.
        StaleAccount: see ``seen``.
    """
    wanted = checked_groups(groups)

    def change(tx: Transaction) -> None:
        project_id = load_project(tx.session, project).id
        # The person's own claims wait for this row.
        handle = tx.session.scalar(select(Annotator.handle).where(Annotator.id == annotator_id).with_for_update())
        if handle is None:
            raise DataError(f"no annotator {annotator_id!r}")
        before = groups_of(tx.session, project_id, annotator_id)
        if seen is not None and tuple(sorted(seen)) != before:
            raise StaleAccount(handle)
        if wanted == before:
            return
        mine = (MemberGroup.project_id == project_id, MemberGroup.annotator_id == annotator_id)
        tx.session.execute(delete(MemberGroup).where(*mine, MemberGroup.group.not_in(wanted)))
        rows = [
            {"project_id": project_id, "annotator_id": annotator_id, "group": word}
            for word in wanted
            if word not in before
        ]
        if rows:
            tx.session.execute(insert(MemberGroup), rows)
        payload = {"groups": list(wanted), "before": list(before)}
        tx.record(actor, SET_GROUPS, "membership", f"{project_id}/{annotator_id}", payload)

    store.transact(change)
    return wanted
