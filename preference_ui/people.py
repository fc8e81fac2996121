"""Annotators: creating, finding and changing accounts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select, update

from preference_ui.db import Store
from preference_ui.errors import ConfigError, DataError, StaleAccount, WordedConfigError
from preference_ui.events import Transaction
from preference_ui.ids import checked_text, new_id
from preference_ui.models import ROLES, Annotator, AuthSession
from preference_ui.passwords import hash_password

MIN_PASSWORD_CHARACTERS = 10


@dataclass(frozen=True)
class Person:
    """An account, without its password hash."""

    id: str
    handle: str
    role: str
    locale: str
    active: bool
    trust: float


def person_of(row: Annotator) -> Person:
    """The public part of a row."""
    return Person(row.id, row.handle, row.role, row.locale, row.active, row.trust)


def normal_handle(handle: str) -> str:
    """Handles are compared without case and outer space."""
    return checked_text(handle, "handle").strip().casefold()


def checked_password_hash(password: str) -> str:
    """Hash of a password for the store.

    Raises:
        ConfigError: it is too short.
    """
    if len(password) < MIN_PASSWORD_CHARACTERS:
        raise WordedConfigError(
            f"the password needs at least {MIN_PASSWORD_CHARACTERS} characters",
            "password",
            count=MIN_PASSWORD_CHARACTERS,
        )
    return hash_password(password)


def create_annotator(
    store: Store,
    handle: str,
    *,
    role: str = "annotator",
    password: str | None = None,
    locale: str = "en",
    actor: str = "system",
) -> Person:
    """Create an account. Without a password nobody can log in as it (simulated annotators).

    Raises:
        ConfigError: the handle is taken or empty, the role unknown, or the password too short.
    """
    name = normal_handle(handle)
    if not name or len(name) > 64:
        raise WordedConfigError("a handle has 1 to 64 characters", "handle")
    if role not in ROLES:
        raise ConfigError(f"role {role!r} is not one of {', '.join(ROLES)}")
    password_hash = checked_password_hash(password) if password is not None else None
    annotator_id = new_id()

    def change(tx: Transaction) -> None:
        if tx.session.scalar(select(Annotator.id).where(Annotator.handle == name)):
            raise WordedConfigError(f"there is an account {name!r} already", "taken", name=name)
        tx.session.execute(
            insert(Annotator).values(
                id=annotator_id,
                handle=name,
                password_hash=password_hash,
                role=role,
                locale=locale,
                active=True,
                trust=1.0,
                created=tx.now,
            )
        )
        tx.record(actor, "annotator.create", "annotator", annotator_id, {"handle": name, "role": role})

    store.transact(change)
    return get_annotator(store, annotator_id)


def find_annotator(store: Store, handle: str) -> Person | None:
    """The account of that handle, or None."""
    with store.read() as session:
        row = session.scalar(select(Annotator).where(Annotator.handle == normal_handle(handle)))
        return person_of(row) if row else None


def ensure_annotator(store: Store, handle: str) -> Person:
    """The account of that handle, made without a password when missing."""
    return find_annotator(store, handle) or create_annotator(store, handle)


def get_annotator(store: Store, annotator_id: str) -> Person:
    """The account of that id.

    Raises:
        DataError: there is none.
    """
    with store.read() as session:
        row = session.get(Annotator, annotator_id)
        if row is None:
            raise DataError(f"no annotator {annotator_id!r}")
        return person_of(row)


def list_annotators(store: Store) -> list[Person]:
    """All accounts by handle."""
    with store.read() as session:
        return [person_of(row) for row in session.scalars(select(Annotator).order_by(Annotator.handle))]


def update_annotator(
    store: Store,
    annotator_id: str,
    *,
    actor: str,
    role: str | None = None,
    locale: str | None = None,
    active: bool | None = None,
    trust: float | None = None,
    password: str | None = None,
    consent: bool = False,
    seen: Person | None = None,
) -> Person:
    """Change what is given; closing an account or changing its password ends its sessions.

    Args:
        seen: the account as the caller looked at it: refuse when its role or state is another one by now.

    Raises:
        ConfigError: an unknown role, a negative trust or a short password.
        StaleAccount: see ``seen``.
    """
    if role is not None and role not in ROLES:
        raise ConfigError(f"role {role!r} is not one of {', '.join(ROLES)}")
    if trust is not None and trust < 0:
        raise ConfigError("trust must be 0 or more")
    given = {"role": role, "locale": locale, "active": active, "trust": trust}
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    shown = dict(values)
    password_hash = checked_password_hash(password) if password is not None else None
    if password_hash is not None:
        values["password_hash"] = password_hash
        shown["password"] = "changed"

    def change(tx: Transaction) -> None:
        if consent:
            values["consent_at"] = tx.now
            shown["consent"] = True
        if not values:
            return
        if seen is not None:
            _refuse_changed(tx, annotator_id, seen)
        tx.session.execute(update(Annotator).where(Annotator.id == annotator_id).values(**values))
        if active is False or password_hash is not None:
            tx.session.execute(update(AuthSession).where(AuthSession.annotator_id == annotator_id).values(revoked=True))
        tx.record(actor, "annotator.update", "annotator", annotator_id, shown)

    store.transact(change)
    return get_annotator(store, annotator_id)


def _refuse_changed(tx: Transaction, annotator_id: str, seen: Person) -> None:
    row = tx.session.execute(
        select(Annotator.handle, Annotator.role, Annotator.active).where(Annotator.id == annotator_id).with_for_update()
    ).first()
    if row is None:
        raise DataError(f"no annotator {annotator_id!r}")
    if (row.role, row.active) != (seen.role, seen.active):
        raise StaleAccount(row.handle)
