"""Logins and sessions as the store keeps them; the web layer adds cookies and addresses.

Every check runs in the database: a restart keeps sessions, logging out ends them everywhere, and guessing is slowed
per account and per address whether or not the account exists.
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import insert, select, update

from preference_ui.db import Store
from preference_ui.errors import AuthError, LockedOut, StoreError
from preference_ui.events import Transaction
from preference_ui.ids import sha256_text
from preference_ui.models import Annotator, AuthSession, LoginAttempt
from preference_ui.passwords import verify_password
from preference_ui.people import Person, checked_password_hash, normal_handle, person_of

FREE_FAILURES_PER_ACCOUNT = 5
FREE_FAILURES_PER_ADDRESS = 20
FIRST_LOCK_SECONDS = 30.0
MAX_LOCK_SECONDS = 3600.0
# Old failures are forgotten after this long without a new one.
FORGET_SECONDS = 24 * 3600.0
IDLE_HOURS = 12
ABSOLUTE_DAYS = 7
# A session's last use is written at most this often: a page view must not cost a disk write.
TOUCH_SECONDS = 60.0
# Nor must it wait for one: while others write for longer, the next request notes the use.
TOUCH_WAIT_MS = 100

_RANK = {"annotator": 0, "reviewer": 1, "admin": 2}


@dataclass(frozen=True)
class Login:
    """A fresh session. ``token`` goes into the cookie and is nowhere else."""

    token: str
    person: Person
    expires: datetime


def _lock_seconds(failures: int, free: int) -> float:
    """Nothing for the free ones, then doubling up to an hour."""
    if failures < free:
        return 0.0
    return min(MAX_LOCK_SECONDS, FIRST_LOCK_SECONDS * 2.0 ** min(failures - free, 20))


def _keys(handle: str, address: str) -> list[tuple[str, int]]:
    keys = [(sha256_text(f"account:{handle}"), FREE_FAILURES_PER_ACCOUNT)]
    if address:
        keys.append((sha256_text(f"address:{address}"), FREE_FAILURES_PER_ADDRESS))
    return keys


def _begin_attempt(tx: Transaction, keys: list[tuple[str, int]]) -> None:
    """Count the attempt as failed before it is looked at, so parallel guesses cannot share one count.

    ``last_failure`` stays as it is until the attempt has failed: a team that logs in every day must not keep its
    address's old failures alive.
    """
    rows = []
    for key, free in keys:
        row = tx.session.scalar(select(LoginAttempt).where(LoginAttempt.key_sha256 == key).with_for_update())
        wait = (row.locked_until - tx.now).total_seconds() if row is not None and row.locked_until is not None else 0.0
        if 0 < wait <= MAX_LOCK_SECONDS:  # no lock is longer: beyond that a wrong clock set it
            raise LockedOut(wait)
        rows.append((key, free, row))
    for key, free, row in rows:
        if row is None:
            row = LoginAttempt(key_sha256=key, failures=0, last_failure=tx.now)
            tx.session.add(row)
        elif (tx.now - row.last_failure).total_seconds() > FORGET_SECONDS:
            row.failures, row.last_failure = 0, tx.now
        row.failures += 1
        wait = _lock_seconds(row.failures, free)
        row.locked_until = tx.now + timedelta(seconds=wait) if wait else None
    tx.session.flush()


def _note_failure(tx: Transaction, keys: list[tuple[str, int]]) -> None:
    """The attempt was wrong indeed: its count stays, and is forgotten a day from now."""
    named = LoginAttempt.key_sha256.in_([key for key, _ in keys])
    tx.session.execute(update(LoginAttempt).where(named).values(last_failure=tx.now))


def _note_success(tx: Transaction, keys: list[tuple[str, int]]) -> None:
    """The account starts afresh; an address gets this one attempt back, and the lock that came of it.

    Not more than that: one own account must not buy guesses at others.
    """
    (account, _), *addresses = keys
    fresh = {"failures": 0, "locked_until": None}
    tx.session.execute(update(LoginAttempt).where(LoginAttempt.key_sha256 == account).values(fresh))
    for key, _ in addresses:
        row = tx.session.scalar(select(LoginAttempt).where(LoginAttempt.key_sha256 == key).with_for_update())
        if row is not None:
            # No attempt is looked at while a lock holds: the one that stands now came of this attempt.
            row.failures, row.locked_until = max(0, row.failures - 1), None
    tx.session.flush()


def login(store: Store, handle: str, password: str, address: str = "") -> Login:
    """Check a password and open a session.

    Takes about 0.2 s of computing on purpose (run it off the event loop), the same for unknown accounts.

    Args:
        address: the client's network address, for a limit across accounts; empty: none.

    Raises:
        LockedOut: too many failures; nothing was looked at.
        AuthError: wrong, unknown or closed (one message for all).
    """
    name = normal_handle(handle)
    keys = _keys(name, address)
    store.transact(lambda tx: _begin_attempt(tx, keys))
    with store.read() as session:
        row = session.scalar(select(Annotator).where(Annotator.handle == name))
        known = person_of(row) if row else None
        password_hash = row.password_hash if row else None
    # Outside any transaction: the hash takes longer than a vote, and votes must not wait for it.
    matches = verify_password(password, password_hash)
    if not matches or known is None or not known.active:
        store.transact(lambda tx: _note_failure(tx, keys))
        raise AuthError("wrong name or password")
    token = secrets.token_urlsafe(32)
    return store.transact(lambda tx: _open_session(tx, known, token, keys))


def _open_session(tx: Transaction, person: Person, token: str, keys: list[tuple[str, int]]) -> Login:
    expires = tx.now + timedelta(days=ABSOLUTE_DAYS)
    tx.session.execute(
        insert(AuthSession).values(
            token_sha256=sha256_text(token),
            annotator_id=person.id,
            created=tx.now,
            expires=expires,
            last_seen=tx.now,
            revoked=False,
        )
    )
    _note_success(tx, keys)
    tx.record(person.id, "auth.login", "annotator", person.id)
    return Login(token, person, expires)


def session_person(store: Store, token: str | None) -> Person | None:
    """Who a session token belongs to; None when it is unknown, revoked, idle too long or over."""
    if not token:
        return None
    digest = sha256_text(token)
    now = store.clock()
    with store.read() as session:
        found = session.execute(
            select(AuthSession, Annotator)
            .join(Annotator, Annotator.id == AuthSession.annotator_id)
            .where(AuthSession.token_sha256 == digest)
        ).first()
        if found is None:
            return None
        row, annotator = found
        idle = (now - row.last_seen).total_seconds()
        if row.revoked or now >= row.expires or idle > IDLE_HOURS * 3600 or not annotator.active:
            return None
        person = person_of(annotator)
    if idle > TOUCH_SECONDS:
        _touch(store, digest)
    return person


def _touch(store: Store, digest: str) -> None:
    row = update(AuthSession).where(AuthSession.token_sha256 == digest)
    with contextlib.suppress(StoreError):
        store.transact(lambda tx: tx.session.execute(row.values(last_seen=tx.now)) and None, wait_ms=TOUCH_WAIT_MS)


def logout(store: Store, token: str) -> None:
    """End a session; its token is worthless from now on. Unknown tokens are ignored."""
    digest = sha256_text(token)

    def change(tx: Transaction) -> None:
        owner = tx.session.scalar(
            select(AuthSession.annotator_id).where(AuthSession.token_sha256 == digest, AuthSession.revoked.is_(False))
        )
        if owner is not None:
            tx.session.execute(update(AuthSession).where(AuthSession.token_sha256 == digest).values(revoked=True))
            tx.record(owner, "auth.logout", "annotator", owner)

    store.transact(change)


def change_password(store: Store, token: str, current: str, new: str) -> None:
    """Change the password of a session's owner; every other session of the account ends.

    A wrong current password counts like a failed login: an open browser must not be a place to guess.

    Raises:
        LockedOut: too many failures; nothing was looked at.
        AuthError: no session, or the current password is wrong.
        ConfigError: the new password is too short.
    """
    person = session_person(store, token)
    if person is None:
        raise AuthError("log in first")
    keys = _keys(person.handle, "")
    store.transact(lambda tx: _begin_attempt(tx, keys))
    with store.read() as session:
        stored = session.scalar(select(Annotator.password_hash).where(Annotator.id == person.id))
    if not verify_password(current, stored):
        store.transact(lambda tx: _note_failure(tx, keys))
        raise AuthError("the current password is wrong")
    digest = checked_password_hash(new)

    def change(tx: Transaction) -> None:
        own = AuthSession.annotator_id == person.id
        tx.session.execute(update(Annotator).where(Annotator.id == person.id).values(password_hash=digest))
        tx.session.execute(
            update(AuthSession).where(own, AuthSession.token_sha256 != sha256_text(token)).values(revoked=True)
        )
        _note_success(tx, keys)
        tx.record(person.id, "annotator.update", "annotator", person.id, {"password": "changed by its owner"})

    store.transact(change)


def require_role(person: Person | None, role: str) -> Person:
    """Insist on a role (or a higher one: annotator < reviewer < admin); call it in every handler.

    Raises:
        AuthError: nobody is logged in, or the role is too low.
    """
    if person is None:
        raise AuthError("log in first")
    if _RANK[person.role] < _RANK[role]:
        raise AuthError(f"this needs the role {role}")
    return person
