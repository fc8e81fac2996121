"""Groups of items and of people; the queue's indexes lead to the first item of each group."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_QUEUE = ["project_id", "kind", "state"]
_BY_PROGRESS: list[Any] = [sa.text("done DESC"), sa.text("priority DESC"), "id"]
_BY_PRIORITY: list[Any] = [sa.text("priority DESC"), "id"]


def _index_queue(*group: str) -> None:
    op.create_index("ix_item_queue", "item", [*_QUEUE, *group, *_BY_PROGRESS])
    op.create_index("ix_item_gold", "item", [*_QUEUE, *group, *_BY_PRIORITY])


def _drop_indexes() -> None:
    op.drop_index("ix_item_gold", "item")
    op.drop_index("ix_item_queue", "item")


def upgrade() -> None:
    op.add_column("item", sa.Column("group", sa.String(64), nullable=False, server_default=""))
    _drop_indexes()
    _index_queue("group")
    op.create_table(
        "member_group",
        sa.Column("project_id", sa.String(36), nullable=False),
        sa.Column("annotator_id", sa.String(36), nullable=False),
        sa.Column("group", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_member_group_project_id_project"),
        sa.ForeignKeyConstraint(["annotator_id"], ["annotator.id"], name="fk_member_group_annotator_id_annotator"),
        sa.PrimaryKeyConstraint("project_id", "annotator_id", "group", name="pk_member_group"),
    )


def downgrade() -> None:
    op.drop_table("member_group")
    _drop_indexes()
    _index_queue()
    op.drop_column("item", "group")
