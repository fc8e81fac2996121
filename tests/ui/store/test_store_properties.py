"""Random schedules of people, time and changed minds: the queue's invariants hold after every step."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from store_helpers import Clock, item_spec, people, undo

from preference_ui import queue
from preference_ui.backup import verify
from preference_ui.db import Store, open_store
from preference_ui.errors import LeaseError
from preference_ui.models import Item, Judgment, Lease
from preference_ui.projects import add_items, create_project
from preference_ui.queue import Assignment, Vote
from preference_ui.settings import ProjectSettings

NUM_PEOPLE, NUM_ITEMS, OVERLAP, EXTRA, LEASE = 4, 3, 2, 1, 100
ACTIONS = ("claim", "submit", "submit", "submit", "revise", "withdraw", "skip", "release", "renew", "late")

steps = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.integers(0, NUM_PEOPLE - 1), st.integers(0, 5), st.integers(0, 60)),
    min_size=5, max_size=40)  # fmt: skip


def _tiers(choice: int) -> Vote:
    orders = ([[0], [1]], [[1], [0]], [[0, 1]])
    return Vote(tiers=orders[choice % 3])


class Schedule:
    """Carries out steps and checks the invariants that no interleaving may break."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store, self.clock = store, clock
        self.people = people(store, *(f"p{i}" for i in range(NUM_PEOPLE)))
        self.tasks: dict[str, list[Assignment]] = {p: [] for p in self.people}
        self.accepted: dict[tuple[str, int], str] = {}

    def step(self, action: str, who: int, choice: int, pause: int) -> None:
        self.clock.advance(pause)
        person = self.people[who]
        # A refusal is an allowed answer; what it must not do is leave a trace, which ``check`` sees.
        with contextlib.suppress(LeaseError):
            self._do(action, person, choice)
        self.check()

    def _do(self, action: str, person: str, choice: int) -> None:
        if action == "claim":
            task = queue.claim(self.store, "p", person)
            if task is not None:
                self._remember(person, task)
            return
        if action == "withdraw":
            self._remember(person, undo(self.store, person, "p"))
            return
        known = self.tasks[person]
        if not known:
            return
        task = known[choice % len(known)] if action in ("revise", "late") else known[-1]
        if action == "revise":
            task = queue.recall(self.store, person, task.lease_id)
        if action == "late":
            self.clock.advance(LEASE + 1)
        if action in ("submit", "revise", "late"):
            receipt = queue.submit(self.store, person, task.lease_id, _tiers(choice), task.revision)
            self.accepted[task.lease_id, receipt.revision] = receipt.judgment_id
        elif action == "skip":
            queue.skip(self.store, person, task.lease_id, "")
        elif action == "release":
            queue.release(self.store, person, task.lease_id)
        else:
            queue.renew(self.store, person, task.lease_id)

    def _remember(self, person: str, task: Assignment) -> None:
        known = [t for t in self.tasks[person] if t.lease_id != task.lease_id]
        self.tasks[person] = [*known, task]

    def check(self) -> None:
        with self.store.read() as session:
            items = session.scalars(select(Item)).all()
            leases = session.scalars(select(Lease)).all()
            judgments = session.scalars(select(Judgment)).all()
        by_item: dict[str, list[Lease]] = {item.id: [] for item in items}
        for lease in leases:
            by_item[lease.item_id].append(lease)
        for item in items:
            states = [lease.state for lease in by_item[item.id]]
            assert (item.active, item.done) == (states.count("active"), states.count("done"))
            assert item.active + item.done <= item.needed <= OVERLAP + EXTRA
            if item.state == "done":
                assert item.done >= item.needed
            elif item.active + item.done < item.needed:
                assert "surplus" not in states, "a late vote takes the place that is free"
            who = [lease.annotator_id for lease in by_item[item.id]]
            assert len(who) == len(set(who))
        active = [lease.annotator_id for lease in leases if lease.state == "active"]
        assert len(active) == len(set(active))
        keys = [(j.lease_id, j.revision) for j in judgments]
        assert len(keys) == len(set(keys))
        stored = {(j.lease_id, j.revision): j.id for j in judgments}
        assert all(stored.get(key) == vote for key, vote in self.accepted.items())


def _drain(schedule: Schedule) -> None:
    """Everybody works until nothing is left: every item is then complete or out of the queue."""
    schedule.clock.advance(LEASE + 1)
    working = True
    while working:
        working = False
        for person in schedule.people:
            task = queue.claim(schedule.store, "p", person)
            if task is not None:
                queue.submit(schedule.store, person, task.lease_id, _tiers(0), task.revision)
                working = True
    schedule.check()


def _run(url: str, folder: Path, plan: list[tuple[str, int, int, int]], seed: int) -> None:
    clock = Clock()
    store = open_store(url, clock=clock, rng=random.Random(seed), files=folder)
    try:
        project = create_project(store, "p", settings=ProjectSettings(
            overlap=OVERLAP, adaptive_extra=EXTRA, lease_seconds=LEASE, max_skips=2))  # fmt: skip
        add_items(store, project.id, [item_spec(i, 2) for i in range(NUM_ITEMS)])
        schedule = Schedule(store, clock)
        for step in plan:
            schedule.step(*step)
        _drain(schedule)
        assert verify(store).problems == []
        with store.read() as session:
            for item in session.scalars(select(Item)):
                orders = session.scalars(select(Lease.permutation_json).where(Lease.item_id == item.id)).all()
                assert len({tuple(sorted(json.loads(o))) for o in orders}) <= 1
    finally:
        store.close()


@given(plan=steps, seed=st.integers(0, 99))
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_schedules_on_sqlite(tmp_path_factory: pytest.TempPathFactory, plan: list, seed: int) -> None:
    folder = tmp_path_factory.mktemp("schedule")
    _run(str(folder / "votes.sqlite"), folder, plan, seed)


@given(plan=steps, seed=st.integers(0, 99))
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_schedules_on_postgresql(
    new_postgres_url: object, tmp_path_factory: pytest.TempPathFactory, plan: list, seed: int
) -> None:
    _run(new_postgres_url(), tmp_path_factory.mktemp("schedule"), plan, seed)  # type: ignore[operator]
