"""Faults: killed writers, racing processes, altered rows. An acknowledged vote is there, once."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError
from store_helpers import MakeProject, by_text, claim, item_spec, people

from preference_ui import queue
from preference_ui.backup import backup, verify
from preference_ui.db import Store, open_store
from preference_ui.errors import ConfigError, StoreError
from preference_ui.filesystem import filesystem_type, refuse_network_filesystem
from preference_ui.models import Event, Item, Judgment, Lease, Project
from preference_ui.people import ensure_annotator
from preference_ui.projects import add_items, create_project
from preference_ui.settings import ProjectSettings

WRITER = Path(__file__).with_name("vote_writer.py")
KILLER = WRITER.with_name("vote_kills.py")
# The quick suite kills ten times; the make target for long runs sets more.
KILL_ROUNDS = int(os.environ.get("STORE_KILL_ROUNDS", "10"))


def _writer(url: str, names: list[str], acks: Path, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(WRITER), url, str(acks), *names], env={**os.environ, **environment})


def _fill(url: str, count: int, overlap: int, lease_seconds: float = 600) -> None:
    store = open_store(url)
    settings = ProjectSettings(overlap=overlap, lease_seconds=lease_seconds)
    project = create_project(store, "helpline", settings=settings)
    add_items(store, project.id, [item_spec(i) for i in range(count)])
    store.close()


def _acked(path: Path) -> list[str]:
    # The line after the last newline was cut by the kill: its vote was never acknowledged.
    return [line for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def _check_votes(url: str, acks: list[str], overlap: int) -> int:
    store = open_store(url)
    with store.read() as session:
        stored = Counter(session.scalars(select(Judgment.id)))
        per_lease = Counter(session.scalars(select(Judgment.lease_id)))
        items = session.scalars(select(Item)).all()
        couples = session.execute(select(Lease.item_id, Lease.annotator_id)).all()
    assert [a for a in acks if a not in stored] == []
    assert len(acks) == len(set(acks))
    assert set(per_lease.values()) <= {1}
    assert all(item.done <= overlap for item in items)
    assert len(couples) == len(set(couples))
    result = verify(store)
    assert result.problems == []
    store.close()
    return len(stored)


def test_killed_writers_lose_and_double_nothing(store_url: str, tmp_path: Path) -> None:
    """SIGKILL at a random moment of voting, again and again, on one store."""
    overlap = 2
    _fill(store_url, 40 * KILL_ROUNDS, overlap, lease_seconds=1)
    acks = tmp_path / "acks"
    command = [sys.executable, str(KILLER), store_url, str(acks), str(KILL_ROUNDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90 + 5 * KILL_ROUNDS)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == KILL_ROUNDS, "every one was killed at work"
    assert len(_acked(acks)) >= 3 * KILL_ROUNDS
    total = _check_votes(store_url, _acked(acks), overlap)
    # A vote may be stored and its acknowledgement cut off: at most one per kill.
    assert len(_acked(acks)) <= total <= len(_acked(acks)) + KILL_ROUNDS


def test_racing_processes_fill_every_item_exactly(store_url: str, tmp_path: Path) -> None:
    num_items, overlap = 25, 2
    _fill(store_url, num_items, overlap)
    logs = [tmp_path / f"acks{k}" for k in range(3)]
    gate = tmp_path / "gate"
    writers = [_writer(store_url, [f"p{k}a", f"p{k}b"], log, GATE=str(gate)) for k, log in enumerate(logs)]
    deadline = time.monotonic() + 60
    while not all(log.exists() for log in logs) and time.monotonic() < deadline:
        time.sleep(0.01)
    gate.touch()
    assert [w.wait(timeout=120) for w in writers] == [0, 0, 0]
    acks = [a for log in logs for a in _acked(log)]
    assert len(acks) == num_items * overlap
    assert _check_votes(store_url, acks, overlap) == num_items * overlap
    assert sum(bool(_acked(log)) for log in logs) >= 2


def _some_votes(store: Store, make_project: MakeProject) -> list[str]:
    make_project(3)
    (ann,) = people(store, "ann")
    ids = []
    for _ in range(3):
        task = claim(store, ann)
        ids.append(queue.submit(store, ann, task.lease_id, by_text(task)).judgment_id)
    assert verify(store).ok
    return ids


APPEND_ONLY = ["event", "judgment", "rating", "flag", "response_edit"]


@pytest.mark.parametrize("table", APPEND_ONLY[:2])
def test_the_database_itself_refuses_to_alter_history(store: Store, make_project: MakeProject, table: str) -> None:
    _some_votes(store, make_project)
    column = "actor" if table == "event" else "rationale"
    statements = [f"UPDATE {table} SET {column} = 'x'", f"DELETE FROM {table}"]
    if not store.is_postgres:
        statements.append(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}")
    else:
        statements.append(f"TRUNCATE {table} CASCADE")
    for statement in statements:
        with pytest.raises((DBAPIError, StoreError), match="append-only"):
            store.transact(lambda tx, s=statement: tx.session.execute(text(s)))  # type: ignore[misc]
    assert verify(store).ok


ALTERATIONS = {
    "vote": "UPDATE judgment SET tiers_json = '[]' WHERE id = '{vote}'",
    "vote and digest": "UPDATE judgment SET all_bad = NOT all_bad, digest = 'x' WHERE id = '{vote}'",
    "vote gone": "DELETE FROM judgment WHERE id = '{vote}'",
    "event payload": "UPDATE event SET payload_json = '{{}}' WHERE entity_id = '{vote}'",
    "event actor": "UPDATE event SET actor = 'eve' WHERE seq = 2",
    "event time": "UPDATE event SET created = '2020-01-01 00:00:00+00' WHERE seq = 2",
    "event gone": "DELETE FROM event WHERE seq = 4",
    "first event gone": "DELETE FROM event WHERE seq = 1",
    "last event gone": "DELETE FROM event WHERE seq = (SELECT max(seq) FROM event)",
    "flag added": "INSERT INTO flag SELECT 'f', id, NULL, 'harmful' FROM judgment WHERE id = '{vote}'",
    "count": "UPDATE item SET done = 0 WHERE done = 1",
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_altered_rows_are_noticed(store: Store, make_project: MakeProject, name: str) -> None:
    """Whoever owns the file can drop the triggers; the chain still tells."""
    votes = _some_votes(store, make_project)
    statement = ALTERATIONS[name].format(vote=votes[-1])
    if store.is_postgres:
        guards = [f"ALTER TABLE {t} DISABLE TRIGGER USER" for t in APPEND_ONLY]
    else:
        guards = [f"DROP TRIGGER keep_{t}_{a}" for t in APPEND_ONLY for a in ("update", "delete")]
        statement = statement.replace("+00'", ".000000'")
    with store.engine.begin() as connection:
        for line in (*guards, statement):
            connection.execute(text(line))
    assert not verify(store).ok


def test_a_cut_off_end_is_noticed_against_a_noted_head(store: Store, make_project: MakeProject) -> None:
    _some_votes(store, make_project)
    (bo,) = people(store, "bo")
    noted = verify(store)
    assert verify(store, (noted.head_seq, noted.head_hash)).ok
    with store.engine.begin() as connection:
        if store.is_postgres:
            connection.execute(text("ALTER TABLE event DISABLE TRIGGER USER"))
        else:
            connection.execute(text("DROP TRIGGER keep_event_delete"))
        connection.execute(text("DELETE FROM event WHERE seq = :seq"), {"seq": noted.head_seq})
        connection.execute(text("DELETE FROM annotator WHERE id = :id"), {"id": bo})
    assert verify(store).ok
    assert not verify(store, (noted.head_seq, noted.head_hash)).ok


def test_backup_while_voting_holds_every_earlier_vote(tmp_path: Path) -> None:
    path = tmp_path / "votes.sqlite"
    _fill(str(path), 400, 2)
    acks = tmp_path / "acks"
    writer = _writer(str(path), ["ann", "bo"], acks)
    deadline = time.monotonic() + 60
    while len(_acked(acks)) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    before = _acked(acks)
    store = open_store(path)
    copy = backup(store, tmp_path / "copies" / "one.sqlite")
    writer.send_signal(signal.SIGKILL)
    writer.wait(timeout=30)
    with pytest.raises(StoreError, match="never replaces"):
        backup(store, copy)
    store.close()
    restored = open_store(copy, create=False)
    with restored.read() as session:
        assert set(before) <= set(session.scalars(select(Judgment.id)))
    assert verify(restored).ok
    restored.close()


def test_every_connection_is_durable(tmp_path: Path) -> None:
    store = open_store(tmp_path / "votes.sqlite")
    for _ in range(3):
        with store.engine.connect() as connection:
            settings = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
        store.engine.dispose()
        assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30000}
    store.close()


def test_a_stuck_writer_is_an_error_within_the_stated_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path / "votes.sqlite")
    monkeypatch.setattr("preference_ui.db.BUSY_TIMEOUT_MS", 300)
    monkeypatch.setattr("preference_ui.db.MAX_ATTEMPTS", 1)
    other = sqlite3.connect(tmp_path / "votes.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    start = time.monotonic()
    with pytest.raises(StoreError, match="locked"):
        ensure_annotator(store, "ann")
    assert 0.25 < time.monotonic() - start < 10
    other.execute("ROLLBACK")
    assert ensure_annotator(store, "ann").handle == "ann"
    other.close()
    store.close()


def test_readers_do_not_wait_for_a_writer(tmp_path: Path) -> None:
    store = open_store(tmp_path / "votes.sqlite")
    ensure_annotator(store, "ann")
    other = sqlite3.connect(tmp_path / "votes.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    start = time.monotonic()
    assert ensure_annotator(store, "ann").handle == "ann"
    assert time.monotonic() - start < 5
    other.execute("ROLLBACK")
    other.close()
    store.close()


MOUNTS = """22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /mnt/team\\040files rw,relatime - nfs4 server:/export rw
31 22 0:41 / /mnt/team\\040files/local rw - xfs /dev/vdb rw
32 22 0:42 / /media/share rw - cifs //server/share rw
33 22 0:43 / /remote rw - fuse.sshfs host: rw
"""


@pytest.mark.parametrize(("path", "kind", "allowed"), [
    ("/home/a/votes.sqlite", "ext4", True), ("/mnt/team files/votes.sqlite", "nfs4", False),
    ("/mnt/team files/local/votes.sqlite", "xfs", True), ("/media/share/x/votes.sqlite", "cifs", False),
    ("/remote/votes.sqlite", "fuse.sshfs", False), ("/remotely/votes.sqlite", "ext4", True),
])  # fmt: skip
def test_network_filesystems_are_refused(path: str, kind: str, allowed: bool) -> None:
    assert filesystem_type(Path(path), MOUNTS) == kind
    if allowed:
        refuse_network_filesystem(Path(path), MOUNTS)
    else:
        with pytest.raises(StoreError, match=kind):
            refuse_network_filesystem(Path(path), MOUNTS)


def test_a_full_database_gives_an_error_and_no_vote(tmp_path: Path) -> None:
    _fill(str(tmp_path / "votes.sqlite"), 3, 1)
    store = open_store(tmp_path / "votes.sqlite")
    ann = ensure_annotator(store, "ann").id
    task = claim(store, ann)
    long = queue.Vote(tiers=[[0], [1], [2]], rationale="x" * 90_000)
    with store.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="full"):
        queue.submit(store, ann, task.lease_id, long)
    with store.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    assert verify(store).judgments == 0
    assert queue.submit(store, ann, task.lease_id, long).counted
    store.close()


def test_unusable_places_are_refused(tmp_path: Path) -> None:
    for url in ("mysql://x/y", "sqlite://", "sqlite:///:memory:", "::://"):
        with pytest.raises(ConfigError):
            open_store(url)
    with pytest.raises(StoreError, match="no preference store"):
        open_store(tmp_path / "none.sqlite", create=False)
    (tmp_path / "text.sqlite").write_text("this is not a database" * 100)
    with pytest.raises(StoreError, match="cannot open"):
        open_store(tmp_path / "text.sqlite")


def test_the_outbox_gives_every_event_once_in_order(store: Store, make_project: MakeProject) -> None:
    from preference_ui.events import tail

    _some_votes(store, make_project)
    seen: list[int] = []
    while True:
        with store.read() as session:
            events = tail(session, seen[-1] if seen else 0, limit=2)
        if not events:
            break
        seen += [e.seq for e in events]
        for event in events:
            json.loads(event.payload_json)
    with store.read() as session:
        assert seen == list(session.scalars(select(Event.seq).order_by(Event.seq)))
    assert seen == list(range(1, len(seen) + 1))


def test_the_server_of_this_suite_is_postgresql(postgres_server: str) -> None:
    with psycopg.connect(postgres_server) as connection:
        version = connection.execute("SELECT version()").fetchone()
    assert version is not None and version[0].startswith("PostgreSQL")


def test_a_write_that_the_database_never_takes_is_an_error_of_the_store(
    store: Store, make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preference_ui.db.time.sleep", lambda _: None)
    project = make_project(1)
    taken = insert(Project).values(
        id=project.id, name="another", guideline_version=1, settings_json="{}", created=store.clock()
    )
    with pytest.raises(StoreError, match="did not take the write"):
        store.transact(lambda tx: tx.session.execute(taken) and None)
