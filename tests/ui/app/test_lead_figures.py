"""The lead's figures: computed in one thread, beside which everybody else goes on."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from preference_ui import queue
from preference_ui.app import dashboard as module
from preference_ui.app.address import Address
from preference_ui.app.dashboard import Dashboard
from preference_ui.app.site import Site
from preference_ui.db import Store
from preference_ui.errors import StoreError
from preference_ui.people import ensure_annotator
from preference_ui.votes import Vote
from tests.ui.app.ui_helpers import seed


class Gate:
    """Stands in for the report: counts its runs and holds them until it is opened."""

    def __init__(self, compute: Callable[..., Any]) -> None:
        self.compute, self.open, self.runs, self.fault = compute, threading.Event(), 0, False

    def __call__(self, *parts: Any) -> Any:
        self.runs += 1
        if self.fault:
            raise ValueError("planted")
        assert self.open.wait(30)
        return self.compute(*parts)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(module.project_report)
    monkeypatch.setattr(module, "project_report", gate)
    yield gate
    gate.open.set()


@pytest.fixture
def place(tmp_path: Path) -> tuple[Store, Dashboard]:
    store = seed(tmp_path / "p.sqlite", num_items=4)
    _vote(store)
    return store, Dashboard(Site(store, "helpline", Address("http://127.0.0.1:1")))


def _vote(store: Store) -> None:
    who = ensure_annotator(store, "ann").id
    task = queue.claim(store, "helpline", who)
    assert task is not None
    queue.submit(store, who, task.lease_id, Vote(tiers=[[0], [1], [2], [3]]))


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_nobody_waits_for_a_run(place: tuple[Store, Dashboard], gate: Gate) -> None:
    _, dashboard = place
    begun = time.monotonic()
    looks = [dashboard.look(renew=bool(n % 2)) for n in range(50)]
    assert time.monotonic() - begun < 2 and gate.runs <= 1
    assert all(look.figures is None and look.running for look in looks)
    assert "being computed" in dashboard.status("en", looks[0]) and dashboard.page("en", looks[0]) == ""
    gate.open.set()
    # Some asked for new ones while it ran: a second run follows, and finds that nothing has changed.
    assert dashboard.figures()[1].votes == 1
    look = dashboard.look()
    assert gate.runs == 1 and not look.running and dashboard.status("en", look) == ""
    assert "tile" in dashboard.page("en", look)


def test_who_asks_during_a_run_gets_a_later_one(place: tuple[Store, Dashboard], gate: Gate) -> None:
    store, dashboard = place
    dashboard.look()
    _until(lambda: gate.runs == 1)  # it has read the store
    _vote(store)
    dashboard.look(renew=True)
    gate.open.set()
    assert dashboard.figures()[1].votes == 2
    assert gate.runs == 2


def test_yesterday_s_figures_are_not_today_s(place: tuple[Store, Dashboard], gate: Gate) -> None:
    """Nothing has changed in the store but the day."""
    store, dashboard = place
    gate.open.set()
    seen, _ = dashboard.figures()
    assert seen.today == 1 and dashboard.figures(renew=True)[0] is seen
    clock = store.clock
    store.clock = lambda: clock() + timedelta(days=1)
    seen, _ = dashboard.figures(renew=True)
    assert seen.today == 0 and seen.per_day[-1] == (store.clock().date(), 0)
    assert f"As of {store.clock():%Y-%m-%d}" in dashboard.page("en", dashboard.look())


def test_asking_again_and_again_takes_half_of_the_time(
    place: tuple[Store, Dashboard], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, dashboard = place
    now = [1000.0]
    monkeypatch.setattr("preference_ui.app.dashboard.time.monotonic", lambda: now[0])
    dashboard.look()
    _until(lambda: gate.runs == 1)
    now[0] += 20
    gate.open.set()
    dashboard.figures()
    _vote(store)
    now[0] += 19
    assert dashboard.look(renew=True).running and dashboard.look().running and gate.runs == 1
    now[0] += 2
    assert dashboard.figures()[1].votes == 2 and gate.runs == 2
    _vote(store)
    assert not dashboard.look().running, "unasked, they are kept ten times as long as they took"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_that_fails_is_said_and_tried_again(
    place: tuple[Store, Dashboard], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, dashboard = place
    gate.fault = True
    with pytest.raises(StoreError, match="server's log"):
        dashboard.figures()
    look = dashboard.look()
    assert not look.running and gate.runs == 1 and "could not be computed" in dashboard.status("en", look)
    gate.fault = False
    gate.open.set()
    later = time.monotonic() + 61
    monkeypatch.setattr("preference_ui.app.dashboard.time.monotonic", lambda: later)
    assert dashboard.figures()[1].votes == 1


def test_the_least_reliable_are_drawn(place: tuple[Store, Dashboard]) -> None:
    """Of 60 raters, three of whom click at random, and one with two votes; the picture has room for 30."""
    _, dashboard = place
    report = dashboard.figures()[1]
    one = report.raters[0]
    raters = [
        dataclasses.replace(one, handle=f"r{n}", beta=0.01 * n if n < 3 else 1 + 0.01 * n, votes=100) for n in range(60)
    ]
    raters += [dataclasses.replace(one, handle="new", beta=0.001, votes=2)]
    raters += [dataclasses.replace(one, handle="gold-only", beta=math.nan, votes=50)]
    shown, cut = module._worst_raters(dataclasses.replace(report, raters=raters))
    assert [r.handle for r in shown] == [f"r{n}" for n in range(30)] and cut
    shown, cut = module._worst_raters(dataclasses.replace(report, raters=[*raters[:5], *raters[-2:]]))
    assert [r.handle for r in shown] == ["r0", "new", "r1", "r2", "r3", "r4"] and not cut
