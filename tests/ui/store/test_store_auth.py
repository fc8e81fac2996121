"""Logins: slow to guess, silent about who exists, ended by logging out."""

from __future__ import annotations

import statistics
import time

import pytest
from store_helpers import Clock

from preference_ui import auth, passwords
from preference_ui.auth import login, logout, require_role, session_person
from preference_ui.backup import verify
from preference_ui.db import Store, open_store
from preference_ui.errors import AuthError, ConfigError, LockedOut, StaleAccount
from preference_ui.models import AuthSession
from preference_ui.people import create_annotator, get_annotator, update_annotator

PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same function with a small cost, so that a test of 200 guesses takes no minute."""
    monkeypatch.setattr(passwords.hash_password, "__kwdefaults__", {"log_n": 4, "r": 8, "p": 1})
    monkeypatch.setattr(passwords, "_DUMMY", passwords.hash_password("", log_n=4, r=8, p=1))


def test_login_logout_and_restart(store: Store, store_url: str) -> None:
    person = create_annotator(store, " Ann ", password=PASSWORD, role="reviewer")
    assert person.handle == "ann"
    first = login(store, "ANN", PASSWORD)
    with store.read() as session:
        assert first.token not in str([vars(row) for row in session.query(AuthSession)])
    restarted = open_store(store_url, create=False, clock=store.clock)
    found = session_person(restarted, first.token)
    assert found is not None and found.id == person.id
    logout(restarted, first.token)
    assert session_person(store, first.token) is None
    logout(store, "unknown token")
    assert session_person(store, "unknown token") is None and session_person(store, None) is None
    restarted.close()
    assert verify(store).ok


def test_sessions_end_when_idle_old_closed_or_repassworded(store: Store, clock: Clock) -> None:
    ann = create_annotator(store, "ann", password=PASSWORD)
    token = login(store, "ann", PASSWORD).token
    for _ in range(16):
        clock.advance(10 * 3600)
        assert session_person(store, token) is not None
    clock.advance(10 * 3600)
    assert session_person(store, token) is None, "a week is the end, however busy"
    token = login(store, "ann", PASSWORD).token
    clock.advance(12 * 3600 + 61)
    assert session_person(store, token) is None, "half a day without use is the end"
    token = login(store, "ann", PASSWORD).token
    update_annotator(store, ann.id, actor="lead", password="another long password")
    assert session_person(store, token) is None
    token = login(store, "ann", "another long password").token
    update_annotator(store, ann.id, actor="lead", active=False)
    assert session_person(store, token) is None
    with pytest.raises(AuthError, match="wrong name or password"):
        login(store, "ann", "another long password")


@pytest.mark.parametrize("handle", ["ann", "nobody"])
def test_of_200_guesses_few_are_looked_at(
    store: Store, clock: Clock, handle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_annotator(store, "ann", password=PASSWORD)
    looked_at = []
    real = passwords.verify_password
    monkeypatch.setattr(auth, "verify_password", lambda p, h: looked_at.append(p) or real(p, h))
    answers = []
    for guess in range(200):
        clock.advance(0.02)
        with pytest.raises(AuthError) as caught:
            login(store, handle, f"guess {guess}")
        answers.append(type(caught.value))
    assert len(looked_at) <= 10
    assert answers.count(LockedOut) >= 190
    with pytest.raises(LockedOut, match="try again in"):
        login(store, handle, PASSWORD)
    clock.advance(auth.MAX_LOCK_SECONDS)
    if handle == "ann":
        assert login(store, handle, PASSWORD).person.handle == "ann"


def test_an_address_is_limited_across_accounts(store: Store) -> None:
    create_annotator(store, "mallory", password=PASSWORD)
    outcomes = []
    for guess in range(60):
        # An own login in between must not buy new guesses.
        name, password = ("mallory", PASSWORD) if guess % 5 == 4 else (f"user{guess}", "guess")
        try:
            login(store, name, password, address="192.0.2.1")
            outcomes.append("in")
        except LockedOut:
            outcomes.append("locked")
        except AuthError:
            outcomes.append("wrong")
    assert outcomes.count("wrong") <= auth.FREE_FAILURES_PER_ADDRESS
    assert outcomes[-1] == "locked"
    assert login(store, "mallory", PASSWORD, address="192.0.2.2").person.handle == "mallory"


def _outcome(store: Store, name: str, password: str) -> str:
    try:
        login(store, name, password, address="192.0.2.1")
    except LockedOut:
        return "locked"
    except AuthError:
        return "wrong"
    return "in"


def test_a_team_behind_one_address_is_not_locked_out(store: Store, clock: Clock) -> None:
    """Sixty people log in, some after a slip, day after day: only the slips count, and for one day."""
    for number in range(60):
        create_annotator(store, f"rater{number}", password=PASSWORD)
    for _ in range(3):
        outcomes = [_outcome(store, f"rater{number}", PASSWORD) for number in range(60)]
        assert outcomes == ["in"] * 60
        slips = [_outcome(store, f"rater{number}", "a slip") for number in range(auth.FREE_FAILURES_PER_ADDRESS - 1)]
        assert set(slips) == {"wrong"}
        assert _outcome(store, "rater59", PASSWORD) == "in"
        # The good logins of the next hours must not keep the slips alive.
        for _ in range(3):
            clock.advance(auth.FORGET_SECONDS / 3 + 1)
            assert _outcome(store, "rater59", PASSWORD) == "in"


@pytest.mark.parametrize("every", [2, 3, 20])
def test_own_logins_neither_buy_guesses_nor_lengthen_a_lock(store: Store, clock: Clock, every: int) -> None:
    """After the free ones a guess waits for its lock, however many own logins stand between."""
    create_annotator(store, "mallory", password=PASSWORD)
    wrong, attempt = 0, 0
    while wrong < auth.FREE_FAILURES_PER_ADDRESS + 3:
        attempt += 1
        if attempt % every == 0:
            _outcome(store, "mallory", PASSWORD)
        outcome = _outcome(store, f"user{attempt}", "guess")
        wrong += outcome == "wrong"
        if wrong >= auth.FREE_FAILURES_PER_ADDRESS and outcome == "wrong":
            lock = auth.FIRST_LOCK_SECONDS * 2 ** (wrong - auth.FREE_FAILURES_PER_ADDRESS)
            clock.advance(lock - 1)
            assert _outcome(store, "mallory", PASSWORD) == "locked"
            clock.advance(2)
            assert _outcome(store, "mallory", PASSWORD) == "in"


def test_roles_and_bad_accounts(store: Store) -> None:
    reviewer = create_annotator(store, "rev", role="reviewer")
    assert require_role(reviewer, "annotator") is reviewer
    for person, role in ((reviewer, "admin"), (None, "annotator")):
        with pytest.raises(AuthError):
            require_role(person, role)
    with pytest.raises(AuthError):
        login(store, "rev", "")
    for bad in (
        {"handle": "rev"},
        {"handle": " "},
        {"handle": "x", "role": "king"},
        {"handle": "x", "password": "short"},
    ):
        with pytest.raises(ConfigError):
            create_annotator(store, **bad)  # type: ignore[arg-type]
    assert get_annotator(store, reviewer.id).role == "reviewer"


def test_an_account_is_not_changed_from_an_older_view(store: Store) -> None:
    seen = create_annotator(store, "ann")
    update_annotator(store, seen.id, actor="one", active=False)
    with pytest.raises(StaleAccount, match="'ann' was changed meanwhile"):
        update_annotator(store, seen.id, actor="other", role="reviewer", seen=seen)
    now = get_annotator(store, seen.id)
    assert (now.role, now.active) == ("annotator", False)
    assert update_annotator(store, seen.id, actor="other", role="reviewer", seen=now).role == "reviewer"


def test_unknown_accounts_cost_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the real cost: the derivation dominates, and runs once either way."""
    monkeypatch.undo()
    stored = passwords.hash_password(PASSWORD)
    times: dict[str, list[float]] = {"known": [], "unknown": []}
    for _ in range(5):
        for name, value in (("known", stored), ("unknown", None)):
            start = time.process_time()
            assert not passwords.verify_password("guess", value)
            times[name].append(time.process_time() - start)
    known, unknown = (statistics.median(times[n]) for n in ("known", "unknown"))
    assert known > 0.02
    assert abs(known - unknown) / known < 0.25
    assert passwords.verify_password(PASSWORD, stored)
    assert not passwords.verify_password("", None)
