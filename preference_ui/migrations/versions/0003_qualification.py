"""How annotators stand in a project's qualification round."""

import sqlalchemy as sa
from alembic import op

from preference_ui.models.base import UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "membership",
        sa.Column("project_id", sa.String(36), nullable=False),
        sa.Column("annotator_id", sa.String(36), nullable=False),
        sa.Column("state", sa.String(24), nullable=False),
        sa.Column("answered", sa.Integer(), nullable=False),
        sa.Column("right", sa.Integer(), nullable=False),
        sa.Column("decided_at", UtcDateTime(), nullable=True),
        sa.CheckConstraint("state IN ('qualifying', 'qualified', 'refused')", name="ck_membership_state"),
        sa.CheckConstraint('"right" >= 0 AND "right" <= answered', name="ck_membership_counts"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_membership_project_id_project"),
        sa.ForeignKeyConstraint(["annotator_id"], ["annotator.id"], name="fk_membership_annotator_id_annotator"),
        sa.PrimaryKeyConstraint("project_id", "annotator_id", name="pk_membership"),
    )


def downgrade() -> None:
    op.drop_table("membership")
