"""The hash chain: every change is recorded in its own transaction, in order, without gaps."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import CursorResult, Engine, Executable, insert, select, text
from sqlalchemy.orm import Session

from preference_ui.ids import canonical_json, sha256_text
from preference_ui.models import Event

GENESIS = "0" * 64
# Votes that a lead takes out, and lets count again.
SET_ASIDE, RESTORE = "judgment.set_aside", "judgment.restore"
# The entity is a membership, named "project id/annotator id".
SET_GROUPS = "membership.groups"
# Any constant shared by all writers of one PostgreSQL database will do.
CHAIN_LOCK = 0x70726566
# Clocks of machines that look after each other differ by less.
MAX_LEAD_SECONDS = 300.0


_LAST = select(Event.seq, Event.hash, Event.created).order_by(Event.seq.desc()).limit(1)
_APPEND = insert(Event)


@dataclass(frozen=True)
class PendingEvent:
    """A change waiting for its place in the chain."""

    actor: str
    action: str
    entity: str
    entity_id: str
    payload_json: str


def event_hash(seq: int, created: datetime, event: PendingEvent, prev_hash: str) -> str:
    """Digest of one chain link over its position, time, content and predecessor."""
    stamp = created.astimezone(UTC).isoformat(timespec="microseconds")
    return sha256_text(
        canonical_json(
            [
                seq,
                stamp,
                event.actor,
                event.action,
                event.entity,
                event.entity_id,
                event.payload_json,
                prev_hash,
            ]
        )
    )


class Transaction:
    """A write transaction: a session, the time it takes place at, and the events it will leave.

    Attributes:
        session: use it for reads and writes.
        now: not earlier than the last recorded event, so a clock set back a little revives no lease; of an event more
            than ``MAX_LEAD_SECONDS`` ahead a wrong clock is to blame, and time would stand still until the right ones
            have come so far. Then it is this machine's clock; events are stamped in order all the same.
        rng: the store's random source.
    """

    def __init__(self, session: Session, clock: Callable[[], datetime], rng: random.Random) -> None:
        self.session = session
        self.rng = rng
        self._pending: list[PendingEvent] = []
        self._is_postgres = session.get_bind().dialect.name == "postgresql"
        self._connection = session.connection()
        self._last = self.run(_LAST).first()
        now = clock()
        ahead = timedelta(0) if self._last is None else self._last.created - now
        self.now = now + ahead if 0 < ahead.total_seconds() <= MAX_LEAD_SECONDS else now

    def run(self, statement: Executable, values: Any = None) -> CursorResult[Any]:
        """Execute a statement that yields columns, not objects: half the cost of ``session.execute``."""
        return self._connection.execute(statement, values)

    @property
    def engine(self) -> Engine:
        """The database written to."""
        return self._connection.engine

    @property
    def head_seq(self) -> int:
        """Position of the last event that this transaction saw when it began."""
        return int(self._last.seq) if self._last is not None else 0

    @property
    def pending(self) -> Sequence[PendingEvent]:
        """Events that this transaction has recorded and not written yet."""
        return self._pending

    def record(
        self, actor: str, action: str, entity: str, entity_id: str, payload: dict[str, Any] | None = None
    ) -> None:
        """Queue an event; it is written when the transaction ends."""
        self._pending.append(PendingEvent(actor, action, entity, entity_id, canonical_json(payload or {})))

    def write_events(self) -> None:
        """Append the queued events. Last act of a transaction: the chain's end is locked until the commit."""
        if not self._pending:
            return
        last = self._last
        # On SQLite the write lock was taken before ``_last`` was read: it still is the last.
        if self._is_postgres:
            self.run(text("SELECT pg_advisory_xact_lock(:key)"), {"key": CHAIN_LOCK})
            last = self.run(_LAST).first()
        seq, prev, floor = (last.seq, last.hash, last.created) if last else (0, GENESIS, self.now)
        created = max(self.now, floor)
        rows = []
        for event in self._pending:
            seq += 1
            digest = event_hash(seq, created, event, prev)
            rows.append(
                {
                    "seq": seq,
                    "created": created,
                    "actor": event.actor,
                    "action": event.action,
                    "entity": event.entity,
                    "entity_id": event.entity_id,
                    "payload_json": event.payload_json,
                    "prev_hash": prev,
                    "hash": digest,
                }
            )
            prev = digest
        self.run(_APPEND, rows)
        self._pending.clear()


def head(session: Session) -> tuple[int, str]:
    """Sequence number and hash of the last event; (0, GENESIS) in an empty store."""
    row = session.execute(_LAST).first()
    return (row.seq, row.hash) if row else (0, GENESIS)


def seconds_ahead(session: Session, now: datetime) -> float:
    """How far the last event is ahead of a clock; 0 when it is behind. See ``MAX_LEAD_SECONDS``."""
    row = session.execute(_LAST).first()
    return max(0.0, (row.created - now).total_seconds()) if row else 0.0


def event_at(session: Session, seq: int) -> tuple[int, str]:
    """An event's sequence number and hash; (0, GENESIS) when there is none. The first one is the store's origin."""
    row = session.execute(select(Event.seq, Event.hash).where(Event.seq == seq)).first()
    return (row.seq, row.hash) if row else (0, GENESIS)


def tail(session: Session, after: int, limit: int = 1000) -> Sequence[Event]:
    """Events after ``after`` in commit order: the outbox. Keep the last ``seq`` seen and call again."""
    return session.scalars(select(Event).where(Event.seq > after).order_by(Event.seq).limit(limit)).all()


def check_chain(session: Session) -> tuple[int, str | None]:
    """Walk the whole chain.

    Returns:
        Number of good links from the start, and what is wrong with the next one (None when all are good).
    """
    prev, expected = GENESIS, 1
    query = select(Event).order_by(Event.seq).execution_options(yield_per=2000)
    for row in session.scalars(query):
        if row.seq != expected:
            return expected - 1, f"event {expected} is missing (found {row.seq})"
        body = PendingEvent(row.actor, row.action, row.entity, row.entity_id, row.payload_json)
        if row.prev_hash != prev or row.hash != event_hash(row.seq, row.created, body, prev):
            return expected - 1, f"event {row.seq} ({row.action} {row.entity_id}) does not match its hash"
        prev = row.hash
        expected += 1
    return expected - 1, None
