"""Who votes: annotators, their logins and sessions."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Boolean, CheckConstraint, Float, ForeignKey, Index, Integer, Text
from sqlalchemy.orm import Mapped, mapped_column

from preference_ui.models.base import Base, Digest, Id, Kind, Name, UtcDateTime, Word

ROLES = ("annotator", "reviewer", "admin")


class Annotator(Base):
    """A person (or a simulated one). Without ``password_hash`` nobody can log in as this row."""

    __tablename__ = "annotator"
    __table_args__ = (CheckConstraint("role IN ('annotator', 'reviewer', 'admin')", name="role"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    handle: Mapped[str] = mapped_column(Name, unique=True)
    password_hash: Mapped[str | None] = mapped_column(Text)
    role: Mapped[str] = mapped_column(Kind, default="annotator")
    locale: Mapped[str] = mapped_column(Kind, default="en")
    active: Mapped[bool] = mapped_column(Boolean, default=True)
    consent_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    trust: Mapped[float] = mapped_column(Float, default=1.0)
    created: Mapped[datetime] = mapped_column(UtcDateTime)


class AuthSession(Base):
    """A login session; only the sha256 of its token is stored, so a stolen file opens no session."""

    __tablename__ = "auth_session"
    __table_args__ = (Index(None, "annotator_id"),)

    token_sha256: Mapped[str] = mapped_column(Digest, primary_key=True)
    annotator_id: Mapped[str] = mapped_column(Id, ForeignKey("annotator.id"))
    created: Mapped[datetime] = mapped_column(UtcDateTime)
    expires: Mapped[datetime] = mapped_column(UtcDateTime)
    last_seen: Mapped[datetime] = mapped_column(UtcDateTime)
    revoked: Mapped[bool] = mapped_column(Boolean, default=False)


class LoginAttempt(Base):
    """Failed logins per key (an account name or an address, hashed), whether or not the account exists."""

    __tablename__ = "login_attempt"

    key_sha256: Mapped[str] = mapped_column(Digest, primary_key=True)
    failures: Mapped[int] = mapped_column(Integer, default=0)
    last_failure: Mapped[datetime] = mapped_column(UtcDateTime)
    locked_until: Mapped[datetime | None] = mapped_column(UtcDateTime)


MEMBER_STATES = ("qualifying", "qualified", "refused")


class Membership(Base):
    """How one annotator stands in a project's qualification round; nobody has a row before the first claim.

    ``answered`` and ``right`` count the round that runs or ran last; ``decided_at`` is when somebody or the round's end
    last decided, and a round counts only what was first answered after it.
    """

    __tablename__ = "membership"
    __table_args__ = (
        CheckConstraint("state IN ('qualifying', 'qualified', 'refused')", name="state"),
        CheckConstraint('"right" >= 0 AND "right" <= answered', name="counts"),
    )

    project_id: Mapped[str] = mapped_column(Id, ForeignKey("project.id"), primary_key=True)
    annotator_id: Mapped[str] = mapped_column(Id, ForeignKey("annotator.id"), primary_key=True)
    state: Mapped[str] = mapped_column(Kind, default="qualifying")
    answered: Mapped[int] = mapped_column(Integer, default=0)
    right: Mapped[int] = mapped_column(Integer, default=0)
    decided_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class MemberGroup(Base):
    """A group that one annotator has in a project: items of it may go to this person, besides those of no group.

    It stands apart from ``Membership``, which nobody has before a first claim under a qualification round.
    """

    __tablename__ = "member_group"

    project_id: Mapped[str] = mapped_column(Id, ForeignKey("project.id"), primary_key=True)
    annotator_id: Mapped[str] = mapped_column(Id, ForeignKey("annotator.id"), primary_key=True)
    group: Mapped[str] = mapped_column(Word, primary_key=True)


class AnnotatorStat(Base):
    """A computed snapshot of one annotator's quality figures in one project."""

    __tablename__ = "annotator_stat"
    __table_args__ = (Index(None, "project_id", "annotator_id"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(Id, ForeignKey("project.id"))
    annotator_id: Mapped[str] = mapped_column(Id, ForeignKey("annotator.id"))
    event_seq: Mapped[int] = mapped_column(Integer)
    reliability: Mapped[float] = mapped_column(Float)
    figures_json: Mapped[str] = mapped_column(Text)
    created: Mapped[datetime] = mapped_column(UtcDateTime)
