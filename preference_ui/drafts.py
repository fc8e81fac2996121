"""Unfinished votes, kept with their lease until the vote is stored."""

from __future__ import annotations

from typing import Any

from preference_ui import leases
from preference_ui.db import Store
from preference_ui.errors import DataError
from preference_ui.events import Transaction
from preference_ui.ids import canonical_json, checked_text

MAX_DRAFT_CHARACTERS = 500_000


def save_draft(store: Store, annotator_id: str, lease_id: str, draft: dict[str, Any] | None, revision: int = 1) -> bool:
    """Keep an unfinished vote (any JSON object), so that a restart of page or server loses nothing.

    Args:
        draft: None throws away what was kept.
        revision: that the vote would get, as ``Assignment.revision`` says.

    Returns:
        Whether it was kept; a draft that comes after the vote of its revision is not.

    Raises:
        LeaseError: not the caller's.
        DataError: not JSON, or too long.
    """
    text = None if draft is None else _draft_text(draft)

    def change(tx: Transaction) -> bool:
        lease, _ = leases.lock_lease(tx, annotator_id, lease_id)
        if revision != lease.revision + 1:
            return False
        lease.draft_json, lease.draft_at = text, tx.now
        tx.session.flush()
        return True

    return store.transact(change)


def _draft_text(draft: dict[str, Any]) -> str:
    try:
        text = checked_text(canonical_json(draft), "draft")
    except (TypeError, ValueError) as error:
        raise DataError(f"draft: is not JSON: {error}") from error
    if not isinstance(draft, dict) or len(text) > MAX_DRAFT_CHARACTERS:
        raise DataError(f"draft: must be an object of at most {MAX_DRAFT_CHARACTERS} characters")
    return text
