"""Publishing guideline versions. Reading them: ``projects.get_guideline``."""

from __future__ import annotations

from sqlalchemy import func, insert, select, update

from preference_ui.db import Store
from preference_ui.errors import StaleGuideline
from preference_ui.events import Transaction
from preference_ui.ids import checked_text, new_id, sha256_text
from preference_ui.models import Guideline, Project


def publish_guideline(
    store: Store, project_id: str, markdown: str, *, reason: str, actor: str, based_on: int | None = None
) -> int:
    """Add a guideline version, which holds for every claim from now on; returns its number.

    Args:
        based_on: the version that the text was written from; None: whichever is in force.

    Raises:
        StaleGuideline: another version is in force by now.
    """
    checked_text(markdown, "guideline")
    return store.transact(lambda tx: add_guideline(tx, project_id, markdown, reason, actor, based_on))


def add_guideline(
    tx: Transaction, project_id: str, markdown: str, reason: str, actor: str, based_on: int | None = None
) -> int:
    """``publish_guideline`` inside an open transaction."""
    query = select(func.max(Guideline.version)).where(Guideline.project_id == project_id)
    version = (tx.session.scalar(query) or 0) + 1
    # Two that read the same version on PostgreSQL both insert the next one: the later fails, runs again, and is seen.
    if based_on is not None and based_on != version - 1:
        raise StaleGuideline(version - 1, based_on)
    tx.session.execute(
        insert(Guideline).values(
            id=new_id(),
            project_id=project_id,
            version=version,
            markdown=markdown,
            reason=reason,
            author=actor,
            created=tx.now,
        )
    )
    tx.session.execute(update(Project).where(Project.id == project_id).values(guideline_version=version))
    tx.record(
        actor,
        "guideline.publish",
        "project",
        project_id,
        {"version": version, "sha256": sha256_text(markdown), "reason": reason},
    )
    return version
