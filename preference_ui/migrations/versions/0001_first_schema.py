"""The first schema: tables, and the triggers that keep judgments and events append-only."""

import sqlalchemy as sa
from alembic import op

from preference_ui.models.base import UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID, _DIGEST, _TIME = sa.String(36), sa.String(64), UtcDateTime()
_APPEND_ONLY = ("event", "judgment", "rating", "flag", "response_edit")
_DROP_ORDER = (
    "response_edit",
    "flag",
    "rating",
    "judgment",
    "decision",
    "lease",
    "annotator_stat",
    "dataset_version",
    "event",
    "rm_score",
    "gold_key",
    "item_response",
    "item",
    "response",
    "prompt",
    "policy_version",
    "guideline",
    "project",
    "login_attempt",
    "auth_session",
    "annotator",
)


def _create_people() -> None:
    op.create_table(
        "annotator",
        sa.Column("id", _ID, nullable=False),
        sa.Column("handle", sa.String(length=200), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=True),
        sa.Column("role", sa.String(length=24), nullable=False),
        sa.Column("locale", sa.String(length=24), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("consent_at", _TIME, nullable=True),
        sa.Column("trust", sa.Float(), nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.CheckConstraint("role IN ('annotator', 'reviewer', 'admin')", name="ck_annotator_role"),
        sa.PrimaryKeyConstraint("id", name="pk_annotator"),
        sa.UniqueConstraint("handle", name="uq_annotator_handle"),
    )
    op.create_table(
        "auth_session",
        sa.Column("token_sha256", _DIGEST, nullable=False),
        sa.Column("annotator_id", _ID, nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("expires", _TIME, nullable=False),
        sa.Column("last_seen", _TIME, nullable=False),
        sa.Column("revoked", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["annotator_id"], ["annotator.id"], name="fk_auth_session_annotator_id_annotator"),
        sa.PrimaryKeyConstraint("token_sha256", name="pk_auth_session"),
    )
    op.create_index("ix_auth_session_annotator_id", "auth_session", ["annotator_id"], unique=False)
    op.create_table(
        "login_attempt",
        sa.Column("key_sha256", _DIGEST, nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("last_failure", _TIME, nullable=False),
        sa.Column("locked_until", _TIME, nullable=True),
        sa.PrimaryKeyConstraint("key_sha256", name="pk_login_attempt"),
    )


def _create_content() -> None:
    op.create_table(
        "project",
        sa.Column("id", _ID, nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("guideline_version", sa.Integer(), nullable=False),
        sa.Column("settings_json", sa.Text(), nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_project"),
        sa.UniqueConstraint("name", name="uq_project_name"),
    )
    op.create_table(
        "guideline",
        sa.Column("id", _ID, nullable=False),
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("markdown", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("author", sa.String(length=200), nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_guideline_project_id_project"),
        sa.PrimaryKeyConstraint("id", name="pk_guideline"),
        sa.UniqueConstraint("project_id", "version", name="uq_guideline_project_id_version"),
    )
    op.create_table(
        "policy_version",
        sa.Column("id", _ID, nullable=False),
        sa.Column("run", sa.String(length=200), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("sha256", _DIGEST, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_policy_version"),
        sa.UniqueConstraint("run", "step", name="uq_policy_version_run_step"),
    )
    op.create_table(
        "prompt",
        sa.Column("id", _ID, nullable=False),
        sa.Column("content_sha256", _DIGEST, nullable=False),
        sa.Column("messages_json", sa.Text(), nullable=False),
        sa.Column("language", sa.String(length=24), nullable=False),
        sa.Column("topic", sa.String(length=200), nullable=False),
        sa.Column("split", sa.String(length=24), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_prompt"),
        sa.UniqueConstraint("content_sha256", name="uq_prompt_content_sha256"),
    )
    op.create_table(
        "response",
        sa.Column("id", _ID, nullable=False),
        sa.Column("prompt_id", _ID, nullable=False),
        sa.Column("policy_version_id", _ID, nullable=True),
        sa.Column("sampling_json", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("num_tokens", sa.Integer(), nullable=True),
        sa.Column("content_sha256", _DIGEST, nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["policy_version_id"], ["policy_version.id"], name="fk_response_policy_version_id_policy_version"
        ),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompt.id"], name="fk_response_prompt_id_prompt"),
        sa.PrimaryKeyConstraint("id", name="pk_response"),
        sa.UniqueConstraint("prompt_id", "content_sha256", name="uq_response_prompt_id_content_sha256"),
    )


def _create_items() -> None:
    op.create_table(
        "item",
        sa.Column("id", _ID, nullable=False),
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("prompt_id", _ID, nullable=False),
        sa.Column("kind", sa.String(length=24), nullable=False),
        sa.Column("state", sa.String(length=24), nullable=False),
        sa.Column("base_needed", sa.Integer(), nullable=False),
        sa.Column("needed", sa.Integer(), nullable=False),
        sa.Column("active", sa.Integer(), nullable=False),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("skips", sa.Integer(), nullable=False),
        sa.Column("priority", sa.Float(), nullable=False),
        sa.Column("repeat_of_lease_id", _ID, nullable=True),
        sa.Column("assigned_to", _ID, nullable=True),
        sa.Column("created", _TIME, nullable=False),
        sa.CheckConstraint("kind = 'gold' OR active + done <= needed", name="ck_item_overlap"),
        sa.CheckConstraint("kind IN ('normal', 'gold', 'repeat')", name="ck_item_kind"),
        sa.CheckConstraint("state IN ('open', 'done', 'review', 'retired')", name="ck_item_state"),
        sa.CheckConstraint("active >= 0 AND done >= 0", name="ck_item_counts"),
        sa.ForeignKeyConstraint(["assigned_to"], ["annotator.id"], name="fk_item_assigned_to_annotator"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_item_project_id_project"),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompt.id"], name="fk_item_prompt_id_prompt"),
        sa.PrimaryKeyConstraint("id", name="pk_item"),
        sa.UniqueConstraint("repeat_of_lease_id", name="uq_item_repeat_of_lease_id"),
    )
    op.create_index("ix_item_queue", "item", ["project_id", "kind", "state", "done", "priority", "id"], unique=False)
    op.create_table(
        "item_response",
        sa.Column("item_id", _ID, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("response_id", _ID, nullable=False),
        sa.ForeignKeyConstraint(["item_id"], ["item.id"], name="fk_item_response_item_id_item"),
        sa.ForeignKeyConstraint(["response_id"], ["response.id"], name="fk_item_response_response_id_response"),
        sa.PrimaryKeyConstraint("item_id", "position", name="pk_item_response"),
    )
    op.create_table(
        "gold_key",
        sa.Column("item_id", _ID, nullable=False),
        sa.Column("tiers_json", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["item_id"], ["item.id"], name="fk_gold_key_item_id_item"),
        sa.PrimaryKeyConstraint("item_id", name="pk_gold_key"),
    )
    op.create_table(
        "rm_score",
        sa.Column("response_id", _ID, nullable=False),
        sa.Column("rm_version", sa.String(length=200), nullable=False),
        sa.Column("mean", sa.Float(), nullable=False),
        sa.Column("std", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["response_id"], ["response.id"], name="fk_rm_score_response_id_response"),
        sa.PrimaryKeyConstraint("response_id", "rm_version", name="pk_rm_score"),
    )


def _create_ledger() -> None:
    op.create_table(
        "event",
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("action", sa.String(length=24), nullable=False),
        sa.Column("entity", sa.String(length=24), nullable=False),
        sa.Column("entity_id", sa.String(length=200), nullable=False),
        sa.Column("payload_json", sa.Text(), nullable=False),
        sa.Column("prev_hash", _DIGEST, nullable=False),
        sa.Column("hash", _DIGEST, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_event"),
    )
    op.create_index("ix_event_entity_id", "event", ["entity_id"], unique=False)
    op.create_table(
        "dataset_version",
        sa.Column("id", _ID, nullable=False),
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("parent_id", _ID, nullable=True),
        sa.Column("options_json", sa.Text(), nullable=False),
        sa.Column("code_sha256", _DIGEST, nullable=False),
        sa.Column("num_rows", sa.Integer(), nullable=False),
        sa.Column("num_judgments", sa.Integer(), nullable=False),
        sa.Column("sha256", _DIGEST, nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("head_seq", sa.Integer(), nullable=False),
        sa.Column("head_hash", _DIGEST, nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["dataset_version.id"], name="fk_dataset_version_parent_id_dataset_version"
        ),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_dataset_version_project_id_project"),
        sa.PrimaryKeyConstraint("id", name="pk_dataset_version"),
        sa.UniqueConstraint("project_id", "number", name="uq_dataset_version_project_id_number"),
    )
    op.create_table(
        "annotator_stat",
        sa.Column("id", _ID, nullable=False),
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("annotator_id", _ID, nullable=False),
        sa.Column("event_seq", sa.Integer(), nullable=False),
        sa.Column("reliability", sa.Float(), nullable=False),
        sa.Column("figures_json", sa.Text(), nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.ForeignKeyConstraint(["annotator_id"], ["annotator.id"], name="fk_annotator_stat_annotator_id_annotator"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_annotator_stat_project_id_project"),
        sa.PrimaryKeyConstraint("id", name="pk_annotator_stat"),
    )
    op.create_index(
        "ix_annotator_stat_project_id_annotator_id",
        "annotator_stat",
        ["project_id", "annotator_id"],
        unique=False,
    )


def _create_work() -> None:
    op.create_table(
        "lease",
        sa.Column("id", _ID, nullable=False),
        sa.Column("item_id", _ID, nullable=False),
        sa.Column("annotator_id", _ID, nullable=False),
        sa.Column("permutation_json", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=24), nullable=False),
        sa.Column("expires", _TIME, nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("claimed", _TIME, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("draft_json", sa.Text(), nullable=True),
        sa.Column("draft_at", _TIME, nullable=True),
        sa.Column("skip_reason", sa.Text(), nullable=True),
        sa.Column("guideline_version", sa.Integer(), nullable=False),
        sa.Column("frozen_in", _ID, nullable=True),
        sa.CheckConstraint(
            "state IN ('active', 'done', 'surplus', 'expired', 'released', 'skipped')", name="ck_lease_state"
        ),
        sa.ForeignKeyConstraint(["annotator_id"], ["annotator.id"], name="fk_lease_annotator_id_annotator"),
        sa.ForeignKeyConstraint(["frozen_in"], ["dataset_version.id"], name="fk_lease_frozen_in_dataset_version"),
        sa.ForeignKeyConstraint(["item_id"], ["item.id"], name="fk_lease_item_id_item"),
        sa.PrimaryKeyConstraint("id", name="pk_lease"),
        sa.UniqueConstraint("item_id", "annotator_id", name="uq_lease_item_id_annotator_id"),
    )
    op.create_index("ix_lease_expiry", "lease", ["state", "expires"], unique=False)
    op.create_index("ix_lease_history", "lease", ["annotator_id", "state", "created"], unique=False)
    op.create_index(
        "uq_lease_one_active",
        "lease",
        ["annotator_id"],
        unique=True,
        sqlite_where=sa.text("state = 'active'"),
        postgresql_where=sa.text("state = 'active'"),
    )
    op.create_table(
        "decision",
        sa.Column("id", _ID, nullable=False),
        sa.Column("item_id", _ID, nullable=False),
        sa.Column("verdict", sa.String(length=24), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("decided_by", _ID, nullable=False),
        sa.Column("guideline_version", sa.Integer(), nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.CheckConstraint("verdict IN ('guideline_unclear', 'rater_error', 'subjective')", name="ck_decision_verdict"),
        sa.ForeignKeyConstraint(["decided_by"], ["annotator.id"], name="fk_decision_decided_by_annotator"),
        sa.ForeignKeyConstraint(["item_id"], ["item.id"], name="fk_decision_item_id_item"),
        sa.PrimaryKeyConstraint("id", name="pk_decision"),
    )
    op.create_index("ix_decision_item_id", "decision", ["item_id"], unique=False)


def _create_judgments() -> None:
    op.create_table(
        "judgment",
        sa.Column("id", _ID, nullable=False),
        sa.Column("lease_id", _ID, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("supersedes", _ID, nullable=True),
        sa.Column("retracted", sa.Boolean(), nullable=False),
        sa.Column("tiers_json", sa.Text(), nullable=False),
        sa.Column("strength", sa.Integer(), nullable=True),
        sa.Column("all_bad", sa.Boolean(), nullable=False),
        sa.Column("rationale", sa.Text(), nullable=False),
        sa.Column("active_ms", sa.Integer(), nullable=True),
        sa.Column("wall_ms", sa.Integer(), nullable=False),
        sa.Column("guideline_version", sa.Integer(), nullable=False),
        sa.Column("ui_sha256", _DIGEST, nullable=False),
        sa.Column("digest", _DIGEST, nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.ForeignKeyConstraint(["lease_id"], ["lease.id"], name="fk_judgment_lease_id_lease"),
        sa.ForeignKeyConstraint(["supersedes"], ["judgment.id"], name="fk_judgment_supersedes_judgment"),
        sa.PrimaryKeyConstraint("id", name="pk_judgment"),
        sa.UniqueConstraint("lease_id", "revision", name="uq_judgment_lease_id_revision"),
    )
    op.create_table(
        "rating",
        sa.Column("judgment_id", _ID, nullable=False),
        sa.Column("response_id", _ID, nullable=False),
        sa.Column("axis", sa.String(length=24), nullable=False),
        sa.Column("value", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["judgment_id"], ["judgment.id"], name="fk_rating_judgment_id_judgment"),
        sa.ForeignKeyConstraint(["response_id"], ["response.id"], name="fk_rating_response_id_response"),
        sa.PrimaryKeyConstraint("judgment_id", "response_id", "axis", name="pk_rating"),
    )
    op.create_table(
        "flag",
        sa.Column("id", _ID, nullable=False),
        sa.Column("judgment_id", _ID, nullable=False),
        sa.Column("response_id", _ID, nullable=True),
        sa.Column("code", sa.String(length=24), nullable=False),
        sa.ForeignKeyConstraint(["judgment_id"], ["judgment.id"], name="fk_flag_judgment_id_judgment"),
        sa.ForeignKeyConstraint(["response_id"], ["response.id"], name="fk_flag_response_id_response"),
        sa.PrimaryKeyConstraint("id", name="pk_flag"),
    )
    op.create_index("ix_flag_judgment_id", "flag", ["judgment_id"], unique=False)
    op.create_table(
        "response_edit",
        sa.Column("judgment_id", _ID, nullable=False),
        sa.Column("response_id", _ID, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["judgment_id"], ["judgment.id"], name="fk_response_edit_judgment_id_judgment"),
        sa.ForeignKeyConstraint(["response_id"], ["response.id"], name="fk_response_edit_response_id_response"),
        sa.PrimaryKeyConstraint("judgment_id", "response_id", name="pk_response_edit"),
    )


def _guard(dialect: str) -> None:
    """Refuse UPDATE and DELETE in the database itself, whatever program asks."""
    if dialect == "postgresql":
        op.execute(
            "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'rows of % are append-only', TG_TABLE_NAME; END $$"
        )
    for table in _APPEND_ONLY:
        if dialect == "postgresql":
            op.execute(
                f"CREATE TRIGGER keep_{table} BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
                "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
            )
            continue
        for action in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER keep_{table}_{action.lower()} BEFORE {action} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, 'rows of {table} are append-only'); END"
            )


def upgrade() -> None:
    _create_people()
    _create_content()
    _create_items()
    _create_ledger()
    _create_work()
    _create_judgments()
    _guard(op.get_bind().dialect.name)


def downgrade() -> None:
    for table in _DROP_ORDER:
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION refuse_change()")
