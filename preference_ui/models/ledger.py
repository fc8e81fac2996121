"""The audit chain and the frozen datasets."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, Index, Integer, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from preference_ui.models.base import Base, Digest, Id, Kind, Name, UtcDateTime


class Event(Base):
    """One change, written in the transaction that made it; audit log and outbox in one.

    ``hash`` covers the row and ``prev_hash``, so changing or removing a row breaks every later one. ``seq``
    has no gaps and grows in commit order: a reader that remembers the last ``seq`` misses nothing.
    """

    __tablename__ = "event"
    __table_args__ = (Index(None, "entity_id"),)

    seq: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    created: Mapped[datetime] = mapped_column(UtcDateTime)
    actor: Mapped[str] = mapped_column(Name)
    action: Mapped[str] = mapped_column(Kind)
    entity: Mapped[str] = mapped_column(Kind)
    entity_id: Mapped[str] = mapped_column(Name)
    payload_json: Mapped[str] = mapped_column(Text)
    prev_hash: Mapped[str] = mapped_column(Digest)
    hash: Mapped[str] = mapped_column(Digest)


class DatasetVersion(Base):
    """A frozen export: what it holds, its digest, and the chain position it was cut at."""

    __tablename__ = "dataset_version"
    __table_args__ = (UniqueConstraint("project_id", "number"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(Id, ForeignKey("project.id"))
    number: Mapped[int] = mapped_column(Integer)
    parent_id: Mapped[str | None] = mapped_column(Id, ForeignKey("dataset_version.id"))
    options_json: Mapped[str] = mapped_column(Text)
    code_sha256: Mapped[str] = mapped_column(Digest)
    num_rows: Mapped[int] = mapped_column(Integer)
    num_judgments: Mapped[int] = mapped_column(Integer)
    sha256: Mapped[str] = mapped_column(Digest)
    path: Mapped[str] = mapped_column(Text)
    head_seq: Mapped[int] = mapped_column(Integer)
    head_hash: Mapped[str] = mapped_column(Digest)
    created: Mapped[datetime] = mapped_column(UtcDateTime)
