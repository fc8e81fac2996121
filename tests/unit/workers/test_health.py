"""A dead rollout worker comes back to work through a fresh adapter, and in no other way."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.errors import WorkerError
from rlhf.workers.health import ALLOWED, Health, HealthRecord

PATH = [Health.STALE, Health.DEAD, Health.RESTARTING, Health.STALE, Health.HEALTHY, Health.STALE, Health.HEALTHY]


def in_state(state: Health) -> HealthRecord:
    record = HealthRecord(3)
    record.now = state
    return record


@pytest.mark.parametrize(("before", "after"), sorted(product(Health, Health), key=str))
def test_only_the_allowed_transitions_are_possible(before: Health, after: Health) -> None:
    record = in_state(before)
    if before is after or (before, after) in ALLOWED:
        record.move(after)
        assert record.now is after
        return
    with pytest.raises(WorkerError, match=f"health cannot go from {before.value} to {after.value}") as caught:
        record.move(after)
    assert record.now is before and not caught.value.is_infrastructure, "a fault of the program is not retried"


def test_death_to_work_passes_a_restart_and_an_adapter() -> None:
    """On every way, however long: the last states before healthy are restarting and stale."""
    ways = {(Health.DEAD,)}
    for _ in range(8):
        ways |= {(*way, after) for way in ways for before, after in ALLOWED if way[-1] is before}
    reached = [way for way in ways if way[-1] is Health.HEALTHY and Health.HEALTHY not in way[:-1]]
    assert reached
    for way in reached:
        last_death = max(i for i, state in enumerate(way) if state is Health.DEAD)
        assert way[last_death:] == (Health.DEAD, Health.RESTARTING, Health.STALE, Health.HEALTHY)


def test_a_new_worker_holds_no_adapter_and_restarts_are_counted() -> None:
    record = HealthRecord(0)
    assert record.now is Health.STALE and record.is_alive and record.restarts == 0
    for _, after in pairwise(PATH):
        record.move(after)
    assert record.restarts == 1
    assert not in_state(Health.DEAD).is_alive and not in_state(Health.RESTARTING).is_alive


@given(st.lists(st.sampled_from(Health), max_size=30))
def test_whatever_is_asked_work_is_only_drawn_with_a_fresh_adapter(asked: list[Health]) -> None:
    record = HealthRecord(0)
    fresh = False  # the model of the invariant: an adapter was given since the last death or new version
    for state in asked:
        before = record.now
        try:
            record.move(state)
        except WorkerError:
            assert record.now is before
            continue
        if state is Health.HEALTHY and before is Health.STALE:
            fresh = True
        elif state is not Health.HEALTHY:
            fresh = False
        assert (record.now is Health.HEALTHY) == fresh
