"""Engines, transactions and opening the store.

SQLite runs in WAL mode with ``synchronous=FULL`` and takes the write lock when a write transaction begins: an
acknowledged vote is on disk, and a reader never has to upgrade (which would fail instead of waiting).
PostgreSQL uses row locks; see ``queue``.
"""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.orm import Session

from preference_ui.errors import ConfigError, StoreError
from preference_ui.events import Transaction
from preference_ui.filesystem import refuse_network_filesystem
from preference_ui.ids import utc_now

T = TypeVar("T")

BUSY_TIMEOUT_MS = 30_000
_WAIT_STEP_MS = 20
MAX_ATTEMPTS = 12
DEFAULT_STORE = "runs/preferences.sqlite"
STORE_VARIABLE = "RLHF_STORE"
FALLBACK_VARIABLE = "RLHF_STORE_DEFAULT"
"""What a job is told: on a node, ``$RLHF_STORE`` may be set for all jobs, and a job's variables go before it."""
# Serialization failure, deadlock, lock not available: the transaction did nothing and may run again.
_RETRY_STATES = {"40001", "40P01", "55P03"}


def default_store() -> str:
    """Where the store is when nobody says: ``$RLHF_STORE``, else what a job was told, else a file under ``runs/``."""
    return os.environ.get(STORE_VARIABLE) or os.environ.get(FALLBACK_VARIABLE) or DEFAULT_STORE


class Store:
    """An open preference store. Share one per process; threads may use it at the same time.

    Attributes:
        engine: the SQLAlchemy engine (SQLite or PostgreSQL).
        files: directory for frozen dataset versions.
        clock: source of the current time; tests replace it.
        rng: draws permutations and decides when gold and repeated items are mixed in.
    """

    def __init__(self, engine: Engine, files: Path, clock: Callable[[], datetime], rng: random.Random) -> None:
        self.engine = engine
        self.files = files
        self.clock = clock
        self.rng = rng
        options: dict[str, Any] = {"write": False}
        if engine.dialect.name == "postgresql":
            options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._reader = engine.execution_options(**options)

    @property
    def is_postgres(self) -> bool:
        """Whether row locks (PostgreSQL) rather than one write lock (SQLite) order the writers."""
        return self.engine.dialect.name == "postgresql"

    @property
    def url(self) -> str:
        """The URL with any password hidden."""
        return self.engine.url.render_as_string(hide_password=True)

    @property
    def path(self) -> Path | None:
        """The SQLite file, or None on PostgreSQL."""
        return None if self.is_postgres else Path(str(self.engine.url.database))

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session on one consistent snapshot; it writes nothing and blocks no writer."""
        with Session(self._reader, expire_on_commit=False, autoflush=False) as session:
            yield session

    def transact(self, change: Callable[[Transaction], T], *, wait_ms: int | None = None) -> T:
        """Run ``change`` in one durable write transaction and return its result.

        On return everything is committed to disk, events included. ``change`` may run more than once (a
        deadlock or a lost race rolls it back), so it must do nothing but database work.

        Args:
            wait_ms: how long to wait for SQLite's one write lock; None: ``BUSY_TIMEOUT_MS``.

        Raises:
            StoreError: the database stayed locked or kept refusing.
        """
        engine = self.engine if wait_ms is None else self.engine.execution_options(wait_ms=wait_ms)
        for attempt in range(MAX_ATTEMPTS):
            try:
                with (
                    Session(engine, expire_on_commit=False, autoflush=False) as session,
                    session.begin(),
                ):
                    tx = Transaction(session, self.clock, self.rng)
                    result = change(tx)
                    tx.write_events()
                return result
            except DBAPIError as error:
                if attempt + 1 == MAX_ATTEMPTS or not _may_retry(error):
                    if isinstance(error, (OperationalError, IntegrityError)):
                        raise StoreError(f"the store did not take the write: {error.orig}") from error
                    raise
                # A lost race is over at once; the growing pause is for a crowd.
                time.sleep(min(0.2, 0.002 * 2**attempt) * (0.5 + random.random()))
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Close pooled connections."""
        self.engine.dispose()


def _may_retry(error: DBAPIError) -> bool:
    if isinstance(error, IntegrityError):
        return True
    return getattr(error.orig, "sqlstate", None) in _RETRY_STATES


def _sqlite_engine(path: Path) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        # None: the driver leaves BEGIN to us, see below.
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout={BUSY_TIMEOUT_MS}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            # Without it INSERT OR REPLACE deletes rows behind the append-only triggers.
            "recursive_triggers=ON",
            "trusted_schema=OFF",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get("write", True):
            _take_write_lock(connection, options.get("wait_ms", BUSY_TIMEOUT_MS))
        else:
            connection.exec_driver_sql("BEGIN")

    return engine


def _take_write_lock(connection: Connection, wait_ms: int) -> None:
    """Begin a write transaction, waiting at a steady pace for up to ``wait_ms``.

    SQLite's own waiting sleeps longer the longer it has waited, so that newcomers overtake and one vote may wait
    for seconds. Starting its wait afresh every few milliseconds gives all waiters the same chance.
    """
    driver: Any = connection.connection.dbapi_connection
    deadline = time.monotonic() + wait_ms / 1000
    driver.execute(f"PRAGMA busy_timeout={_WAIT_STEP_MS}")
    try:
        while time.monotonic() < deadline:
            try:
                driver.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    break
        # Through SQLAlchemy, which names the error as it does every other.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    finally:
        driver.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")


def make_engine(url_or_path: str | Path) -> Engine:
    """Engine for a SQLite file path, a ``sqlite:///`` URL or a ``postgresql://`` URL."""
    given = str(url_or_path)
    if "://" not in given:
        return _sqlite_engine(Path(given).expanduser().absolute())
    try:
        url = make_url(given)
    except ArgumentError as error:
        raise ConfigError(f"store: {given.split('@')[-1]!r} is not a database URL or a file path") from error
    backend = url.get_backend_name()
    if backend == "sqlite":
        if not url.database or url.database == ":memory:":
            raise ConfigError("store: SQLite needs a file; an in-memory store would lose every vote")
        return _sqlite_engine(Path(url.database).absolute())
    if backend == "postgresql":
        # READ COMMITTED: after waiting for a row lock, conditions are judged on the row as it is now.
        return create_engine(
            url.set(drivername="postgresql+psycopg"), isolation_level="READ COMMITTED", pool_pre_ping=True
        )
    raise ConfigError(f"store: {backend} is not supported; use a file path or a postgresql:// URL")


def open_store(
    url_or_path: str | Path | None = None,
    create: bool = True,
    *,
    migrate: bool = True,
    files: str | Path | None = None,
    clock: Callable[[], datetime] = utc_now,
    rng: random.Random | None = None,
) -> Store:
    """Open the store and bring its tables up to date.

    Args:
        url_or_path: a file path (SQLite) or a URL; default ``$RLHF_STORE``, else ``runs/preferences.sqlite``.
        create: make a missing store; without it that is an error.
        migrate: bring an older store's tables up to date; without it they are read as they are, for a backup.
        files: directory for frozen versions; default ``<file>.versions``, or ``runs/versions`` on PostgreSQL.
        clock: current time in UTC.
        rng: give a seeded one for reproducible permutations; the default is the system's.

    Raises:
        ConfigError: the URL cannot be used.
        StoreError: missing, newer than this code, on a network filesystem, or not a database.
    """
    engine = make_engine(default_store() if url_or_path is None else url_or_path)
    if engine.dialect.name == "sqlite":
        path = Path(str(engine.url.database))
        refuse_network_filesystem(path)
        if not path.exists():
            if not create:
                raise StoreError(f"no preference store at {path}; create one with `rlhf prefs import`")
            path.parent.mkdir(parents=True, exist_ok=True)
        files = files or path.with_name(path.name + ".versions")
    store = Store(engine, Path(files or "runs/versions").absolute(), clock, rng or random.SystemRandom())
    try:
        _bring_up_to_date(store, create, migrate)
    except (OperationalError, DBAPIError) as error:
        raise StoreError(f"cannot open the store at {store.url}: {error.orig}") from error
    return store


def _bring_up_to_date(store: Store, create: bool, migrate: bool) -> None:
    from preference_ui.migrations import HEAD, upgrade

    with store.engine.execution_options(write=False).connect() as connection:
        current = None
        if inspect(connection).has_table("alembic_version"):
            current = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if current == HEAD:
        return
    if current is None and not create:
        raise StoreError(f"{store.url} holds no preference store; create one with `rlhf prefs import`")
    if not migrate:
        return
    if current is not None and current > HEAD:
        raise StoreError(
            f"{store.url} was written by a newer release (schema {current}, this one knows {HEAD}): use that release, "
            "or the backup that was made before it"
        )
    upgrade(store.engine)
