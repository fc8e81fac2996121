"""What people did: leases, judgments and what hangs on them, decisions on disagreements."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Boolean, CheckConstraint, ForeignKey, Index, Integer, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from preference_ui.models.base import Base, Digest, Id, Kind, UtcDateTime

LEASE_STATES = ("active", "done", "surplus", "expired", "released", "skipped")


class Lease(Base):
    """One annotator's hold on one item, with the order in which the responses were shown.

    The two unique indexes make a collision impossible rather than unlikely: one lease per item and
    annotator for ever, and one active lease per annotator. ``surplus`` is a vote that came after the item
    had been given to somebody else: kept, but not counted towards the overlap.
    """

    __tablename__ = "lease"
    __table_args__ = (
        UniqueConstraint("item_id", "annotator_id"),
        Index(
            "uq_lease_one_active",
            "annotator_id",
            unique=True,
            sqlite_where=text("state = 'active'"),
            postgresql_where=text("state = 'active'"),
        ),
        Index("ix_lease_expiry", "state", "expires"),
        Index("ix_lease_history", "annotator_id", "state", "created"),
        Index("ix_lease_decided", "annotator_id", "decided_at", "id"),
        CheckConstraint("state IN ('active', 'done', 'surplus', 'expired', 'released', 'skipped')", name="state"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    item_id: Mapped[str] = mapped_column(Id, ForeignKey("item.id"))
    annotator_id: Mapped[str] = mapped_column(Id, ForeignKey("annotator.id"))
    # JSON list: response id per slot.
    permutation_json: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Kind, default="active")
    expires: Mapped[datetime] = mapped_column(UtcDateTime)
    created: Mapped[datetime] = mapped_column(UtcDateTime)
    # When the annotator last began to look at it; ``created`` stays the first time.
    claimed: Mapped[datetime] = mapped_column(UtcDateTime)
    # When the vote or skip that stands was given; null while none stands.
    decided_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revision: Mapped[int] = mapped_column(Integer, default=0)
    draft_json: Mapped[str | None] = mapped_column(Text)
    draft_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    skip_reason: Mapped[str | None] = mapped_column(Text)
    guideline_version: Mapped[int] = mapped_column(Integer)
    frozen_in: Mapped[str | None] = mapped_column(Id, ForeignKey("dataset_version.id"))


class Judgment(Base):
    """One revision of one annotator's ranking. Rows are only added; triggers refuse update and delete."""

    __tablename__ = "judgment"
    __table_args__ = (UniqueConstraint("lease_id", "revision"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    lease_id: Mapped[str] = mapped_column(Id, ForeignKey("lease.id"))
    revision: Mapped[int] = mapped_column(Integer)
    supersedes: Mapped[str | None] = mapped_column(Id, ForeignKey("judgment.id"))
    retracted: Mapped[bool] = mapped_column(Boolean, default=False)
    # JSON list of lists of response ids, best tier first.
    tiers_json: Mapped[str] = mapped_column(Text)
    strength: Mapped[int | None] = mapped_column(Integer)
    all_bad: Mapped[bool] = mapped_column(Boolean, default=False)
    rationale: Mapped[str] = mapped_column(Text, default="")
    active_ms: Mapped[int | None] = mapped_column(Integer)
    wall_ms: Mapped[int] = mapped_column(Integer)
    guideline_version: Mapped[int] = mapped_column(Integer)
    ui_sha256: Mapped[str] = mapped_column(Digest, default="")
    # Digest of the whole vote, ratings, flags and edits included; the hash chain holds it too.
    digest: Mapped[str] = mapped_column(Digest)
    created: Mapped[datetime] = mapped_column(UtcDateTime)


class Rating(Base):
    """A number on one axis for one response."""

    __tablename__ = "rating"

    judgment_id: Mapped[str] = mapped_column(Id, ForeignKey("judgment.id"), primary_key=True)
    response_id: Mapped[str] = mapped_column(Id, ForeignKey("response.id"), primary_key=True)
    axis: Mapped[str] = mapped_column(Kind, primary_key=True)
    value: Mapped[int] = mapped_column(Integer)


class Flag(Base):
    """A coded remark on one response, or on the whole item when ``response_id`` is null."""

    __tablename__ = "flag"
    __table_args__ = (Index(None, "judgment_id"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    judgment_id: Mapped[str] = mapped_column(Id, ForeignKey("judgment.id"))
    response_id: Mapped[str | None] = mapped_column(Id, ForeignKey("response.id"))
    code: Mapped[str] = mapped_column(Kind)


class ResponseEdit(Base):
    """A better text that the annotator wrote in place of a response."""

    __tablename__ = "response_edit"

    judgment_id: Mapped[str] = mapped_column(Id, ForeignKey("judgment.id"), primary_key=True)
    response_id: Mapped[str] = mapped_column(Id, ForeignKey("response.id"), primary_key=True)
    text: Mapped[str] = mapped_column(Text)


class Decision(Base):
    """A lead's ruling on an item whose raters disagreed."""

    __tablename__ = "decision"
    __table_args__ = (
        Index(None, "item_id"),
        CheckConstraint("verdict IN ('guideline_unclear', 'rater_error', 'subjective')", name="verdict"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    item_id: Mapped[str] = mapped_column(Id, ForeignKey("item.id"))
    verdict: Mapped[str] = mapped_column(Kind)
    note: Mapped[str] = mapped_column(Text, default="")
    decided_by: Mapped[str] = mapped_column(Id, ForeignKey("annotator.id"))
    guideline_version: Mapped[int] = mapped_column(Integer)
    created: Mapped[datetime] = mapped_column(UtcDateTime)
