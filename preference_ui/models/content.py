"""What is voted on: projects, guidelines, prompts, responses and items."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, Float, ForeignKey, Index, Integer, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from preference_ui.models.base import Base, Digest, Id, Kind, Name, UtcDateTime, Word


class Project(Base):
    """One annotation task with its settings (see ``projects.ProjectSettings``)."""

    __tablename__ = "project"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(Name, unique=True)
    guideline_version: Mapped[int] = mapped_column(Integer, default=1)
    settings_json: Mapped[str] = mapped_column(Text)
    created: Mapped[datetime] = mapped_column(UtcDateTime)


class Guideline(Base):
    """One version of a project's guideline; versions are only added."""

    __tablename__ = "guideline"
    __table_args__ = (UniqueConstraint("project_id", "version"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(Id, ForeignKey("project.id"))
    version: Mapped[int] = mapped_column(Integer)
    markdown: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text, default="")
    author: Mapped[str] = mapped_column(Name)
    created: Mapped[datetime] = mapped_column(UtcDateTime)


class PolicyVersion(Base):
    """The model that wrote a response: training run, step and adapter digest."""

    __tablename__ = "policy_version"
    __table_args__ = (UniqueConstraint("run", "step"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    run: Mapped[str] = mapped_column(Name)
    step: Mapped[int] = mapped_column(Integer)
    uri: Mapped[str] = mapped_column(Text, default="")
    sha256: Mapped[str] = mapped_column(Digest, default="")


class Prompt(Base):
    """A conversation that asks for a response; unique by the digest of its messages."""

    __tablename__ = "prompt"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    content_sha256: Mapped[str] = mapped_column(Digest, unique=True)
    messages_json: Mapped[str] = mapped_column(Text)
    language: Mapped[str] = mapped_column(Kind, default="")
    topic: Mapped[str] = mapped_column(Name, default="")
    split: Mapped[str] = mapped_column(Kind, default="")
    source: Mapped[str] = mapped_column(Text, default="")
    created: Mapped[datetime] = mapped_column(UtcDateTime)


class Response(Base):
    """A candidate text for a prompt, with where it came from."""

    __tablename__ = "response"
    __table_args__ = (UniqueConstraint("prompt_id", "content_sha256"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    prompt_id: Mapped[str] = mapped_column(Id, ForeignKey("prompt.id"))
    policy_version_id: Mapped[str | None] = mapped_column(Id, ForeignKey("policy_version.id"))
    sampling_json: Mapped[str] = mapped_column(Text, default="{}")
    text: Mapped[str] = mapped_column(Text)
    num_tokens: Mapped[int | None] = mapped_column(Integer)
    content_sha256: Mapped[str] = mapped_column(Digest)
    created: Mapped[datetime] = mapped_column(UtcDateTime)


class Item(Base):
    """A ranking task: one prompt with its responses.

    Invariants (checked by ``backup.verify``): ``active`` and ``done`` equal the counts of leases in those
    states; ``active + done <= needed`` for kinds other than gold. ``needed`` exceeds ``base_needed`` by the extra votes
    on a disagreement (``adaptive_extra`` at most) and by those that a lead has asked for.
    """

    __tablename__ = "item"
    __table_args__ = (
        CheckConstraint("kind IN ('normal', 'gold', 'repeat')", name="kind"),
        CheckConstraint("state IN ('open', 'done', 'review', 'retired')", name="state"),
        CheckConstraint("active >= 0 AND done >= 0", name="counts"),
        CheckConstraint("kind = 'gold' OR active + done <= needed", name="overlap"),
        # An import asks for every row whether the store knows it.
        Index("ix_item_prompt", "project_id", "prompt_id"),
        UniqueConstraint("repeat_of_lease_id"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(Id, ForeignKey("project.id"))
    prompt_id: Mapped[str] = mapped_column(Id, ForeignKey("prompt.id"))
    kind: Mapped[str] = mapped_column(Kind, default="normal")
    state: Mapped[str] = mapped_column(Kind, default="open")
    base_needed: Mapped[int] = mapped_column(Integer)
    needed: Mapped[int] = mapped_column(Integer)
    active: Mapped[int] = mapped_column(Integer, default=0)
    done: Mapped[int] = mapped_column(Integer, default=0)
    skips: Mapped[int] = mapped_column(Integer, default=0)
    priority: Mapped[float] = mapped_column(Float, default=0.0)
    # Who may take it: people who have this group in the project; empty: anybody.
    group: Mapped[str] = mapped_column(Word, default="", server_default="")
    # A repeat item asks one annotator again about what the lease answered.
    repeat_of_lease_id: Mapped[str | None] = mapped_column(Id)
    assigned_to: Mapped[str | None] = mapped_column(Id, ForeignKey("annotator.id"))
    # Until then only who has a lease on it may take it: whoever asked the question is first to rank its answers.
    reserved_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created: Mapped[datetime] = mapped_column(UtcDateTime)


# In the very order that claims ask for, so that the next item of a group is its first entry.
_QUEUE = (Item.project_id, Item.kind, Item.state, Item.group)
Index("ix_item_queue", *_QUEUE, Item.done.desc(), Item.priority.desc(), Item.id)
Index("ix_item_gold", *_QUEUE, Item.priority.desc(), Item.id)


class ItemResponse(Base):
    """Membership of a response in an item, in import order (never the order shown)."""

    __tablename__ = "item_response"

    item_id: Mapped[str] = mapped_column(Id, ForeignKey("item.id"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    response_id: Mapped[str] = mapped_column(Id, ForeignKey("response.id"))


class GoldKey(Base):
    """The expected tiers of a gold item. Kept apart: all that a page learns of it is whether a round is passed."""

    __tablename__ = "gold_key"

    item_id: Mapped[str] = mapped_column(Id, ForeignKey("item.id"), primary_key=True)
    tiers_json: Mapped[str] = mapped_column(Text)


class RewardScore(Base):
    """A reward model's opinion of a response, for choosing what to ask people next."""

    __tablename__ = "rm_score"

    response_id: Mapped[str] = mapped_column(Id, ForeignKey("response.id"), primary_key=True)
    rm_version: Mapped[str] = mapped_column(Name, primary_key=True)
    mean: Mapped[float] = mapped_column(Float)
    std: Mapped[float] = mapped_column(Float, default=0.0)
