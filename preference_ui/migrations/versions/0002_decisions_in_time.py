"""When an answer was decided, items kept for who asked, and indexes in the order in which claims and imports read."""

import sqlalchemy as sa
from alembic import op

from preference_ui.models.base import UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# What stands of a lease: its newest judgment, or the newest event that tells of its skip.
_VOTED_AT = """
    UPDATE lease SET decided_at = (
        SELECT judgment.created FROM judgment
        WHERE judgment.lease_id = lease.id AND judgment.revision = lease.revision)
    WHERE state IN ('done', 'surplus')
"""
_SKIPPED_AT = """
    UPDATE lease SET decided_at = (
        SELECT max(event.created) FROM event WHERE event.entity_id = lease.id AND event.action = 'lease.skip')
    WHERE state = 'skipped'
"""
_QUEUE = ["project_id", "kind", "state"]


def upgrade() -> None:
    op.add_column("lease", sa.Column("decided_at", UtcDateTime(), nullable=True))
    op.add_column("item", sa.Column("reserved_until", UtcDateTime(), nullable=True))
    op.execute(_VOTED_AT)
    op.execute(_SKIPPED_AT)
    op.create_index("ix_lease_decided", "lease", ["annotator_id", "decided_at", "id"])
    op.drop_index("ix_item_queue", "item")
    op.create_index("ix_item_queue", "item", [*_QUEUE, sa.text("done DESC"), sa.text("priority DESC"), "id"])
    op.create_index("ix_item_gold", "item", [*_QUEUE, sa.text("priority DESC"), "id"])
    op.create_index("ix_item_prompt", "item", ["project_id", "prompt_id"])


def downgrade() -> None:
    op.drop_index("ix_item_prompt", "item")
    op.drop_index("ix_item_gold", "item")
    op.drop_index("ix_item_queue", "item")
    op.create_index("ix_item_queue", "item", [*_QUEUE, "done", "priority", "id"])
    op.drop_index("ix_lease_decided", "lease")
    op.drop_column("item", "reserved_until")
    op.drop_column("lease", "decided_at")
