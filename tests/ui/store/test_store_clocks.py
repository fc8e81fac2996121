"""A machine whose clock was wrong for a while: the chain stays in order, and nobody has to wait for that time."""

from __future__ import annotations

import pytest
from store_helpers import Clock, MakeProject, by_text, claim, lease_row, people

from preference_ui import auth, passwords, queue
from preference_ui.app.address import Address
from preference_ui.app.api import api_routes
from preference_ui.app.site import Site
from preference_ui.backup import verify
from preference_ui.db import Store
from preference_ui.errors import AuthError, LockedOut, TooSoon
from preference_ui.events import MAX_LEAD_SECONDS, seconds_ahead
from preference_ui.models import Event
from preference_ui.people import create_annotator

DAYS = 2 * 86_400


def test_a_clock_that_was_ahead_stops_nobody(store: Store, make_project: MakeProject, clock: Clock) -> None:
    make_project(3, lease_seconds=100, min_seconds=5)
    ann, bo, cy = people(store, "ann", "bo", "cy")
    clock.advance(DAYS)
    wrong = claim(store, ann)
    clock.advance(-DAYS)
    # Its own task can be answered: how long it was looked at cannot be told.
    queue.submit(store, ann, wrong.lease_id, by_text(wrong))
    task = claim(store, bo)
    with pytest.raises(TooSoon):
        queue.submit(store, bo, task.lease_id, by_text(task))
    clock.advance(6)
    queue.submit(store, bo, task.lease_id, by_text(task))
    left = claim(store, bo)
    clock.advance(101)
    assert queue.claim(store, "helpline", cy) is not None
    assert lease_row(store, left.lease_id).state == "expired", "holds end"
    with store.read() as session:
        times = [e.created for e in session.query(Event).order_by(Event.seq)]
        assert seconds_ahead(session, clock()) > MAX_LEAD_SECONDS
    assert times == sorted(times) and verify(store).ok


def test_a_clock_a_little_behind_counts_from_the_last_event(
    store: Store, make_project: MakeProject, clock: Clock
) -> None:
    make_project(2, lease_seconds=100, min_seconds=5)
    (ann,) = people(store, "ann")
    task = claim(store, ann)
    clock.advance(-MAX_LEAD_SECONDS / 2)
    with pytest.raises(TooSoon):
        queue.submit(store, ann, task.lease_id, by_text(task))


def test_no_lock_of_a_wrong_clock_outlives_the_longest(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords.hash_password, "__kwdefaults__", {"log_n": 4, "r": 8, "p": 1})
    create_annotator(store, "ann", password="correct horse battery")
    clock.advance(DAYS)
    for _ in range(auth.FREE_FAILURES_PER_ACCOUNT + 1):
        with pytest.raises((AuthError, LockedOut)):
            auth.login(store, "ann", "wrong")
    clock.advance(-DAYS)
    assert auth.login(store, "ann", "correct horse battery").person.handle == "ann"


def test_whoever_watches_the_server_is_told(store: Store, make_project: MakeProject, clock: Clock) -> None:
    make_project(1)
    (health,) = (
        route.endpoint  # type: ignore[attr-defined]
        for route in api_routes(Site(store, "helpline", Address("http://127.0.0.1:1"))).routes
        if route.path == "/healthz"  # type: ignore[attr-defined]
    )
    assert health().body == b'{"status":"ok"}'
    clock.advance(-MAX_LEAD_SECONDS - 60)
    assert b"360 seconds ahead" in health().body and health().status_code == 200
