"""The progress line: one step per answer, whatever its kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime

import pytest
from store_helpers import Clock, MakeProject, by_text, claim, count, item_of, item_spec, people, undo

from preference_ui import progress as progress_module
from preference_ui import queue
from preference_ui.db import Store
from preference_ui.models import Item
from preference_ui.overview import overview
from preference_ui.progress import Progress, ProgressLines
from preference_ui.projects import add_items, update_settings
from preference_ui.reviews import decide
from preference_ui.zones import zone_of

Reader = Callable[[str], Progress]
# Today, mine, done, total.
STEP, FULL_STEP = (1, 1, 1, 0), (1, 1, 0, 0)


@pytest.fixture(params=["read now", "as the server does"])
def read(request: pytest.FixtureRequest, store: Store) -> Reader:
    """Both ways to read the line."""
    if request.param == "read now":
        return lambda who: queue.progress(store, "helpline", who)
    lines = ProgressLines(store)
    return lambda who: lines.of("helpline", who)


def _steps(store: Store, clock: Clock, read: Reader, who: str, *, flip: bool = False) -> dict[str, set[tuple]]:
    """All that a person sees move, by kind of task, until nothing is left."""
    seen: dict[str, set[tuple]] = {}
    task = queue.claim(store, "helpline", who)
    while task is not None:
        before, kind = read(who), item_of(store, task.lease_id).kind
        clock.advance(20)
        vote = by_text(task, worst_first=flip)
        task = queue.submit(store, who, task.lease_id, vote, claim_next=True).next
        after = read(who)
        step = tuple(b - a for a, b in zip(vars(before).values(), vars(after).values(), strict=True))
        if before.project_done < before.project_total:
            seen.setdefault(kind, set()).add(step)
        else:
            assert step == FULL_STEP
    return seen


@pytest.mark.parametrize(("gold_rate", "repeat_rate"), [(0.3, 0.3), (0.5, 0.5)])
def test_an_answer_moves_the_line_alike_whatever_its_kind(
    store: Store, make_project: MakeProject, clock: Clock, read: Reader, gold_rate: float, repeat_rate: float
) -> None:
    project = make_project(14, gold_rate=gold_rate, repeat_rate=repeat_rate, repeat_after_seconds=0, overlap=2)
    add_items(store, project.id, [item_spec(100 + i, gold_tiers=((0,), (1, 2))) for i in range(8)])
    ann, bo = people(store, "ann", "bo")
    seen = _steps(store, clock, read, ann)
    assert seen == {"normal": {STEP}, "gold": {STEP}, "repeat": {STEP}}
    line = read(ann)
    assert line.project_total == 28
    clock.advance(progress_module.REFRESH_SECONDS)
    assert _steps(store, clock, read, bo) == {"normal": {STEP}, "gold": {STEP}, "repeat": {STEP}}
    clock.advance(progress_module.REFRESH_SECONDS)
    assert (read(ann).project_done, read(bo).project_done) == (28, 28)


def test_an_extra_vote_on_a_disagreement_shows_nowhere(
    store: Store, make_project: MakeProject, clock: Clock, read: Reader
) -> None:
    make_project(4, overlap=2, adaptive_extra=1)
    ann, bo, cy, di = people(store, "ann", "bo", "cy", "di")
    for who, flip in ((ann, False), (bo, True)):
        assert _steps(store, clock, read, who, flip=flip) == {"normal": {STEP}}
        clock.advance(progress_module.REFRESH_SECONDS)
    assert count(store, Item, Item.needed == 3) == 4
    assert _steps(store, clock, read, cy) == {}, "the line is full; the extra votes do not move it"
    clock.advance(progress_module.REFRESH_SECONDS)
    assert [read(who) for who in (ann, cy)] == [Progress(4, 4, 8, 8)] * 2
    assert read(di) == Progress(0, 0, 8, 8)


def test_skips_and_undone_answers_tell_no_kind_either(
    store: Store, make_project: MakeProject, clock: Clock, read: Reader
) -> None:
    project = make_project(6, gold_rate=0.5, max_skips=1, overlap=2)
    add_items(store, project.id, [item_spec(100 + i, gold_tiers=((0,), (1, 2))) for i in range(6)])
    (ann,) = people(store, "ann")
    kinds = set()
    for _ in range(8):
        task = claim(store, ann)
        kinds.add(item_of(store, task.lease_id).kind)
        before = read(ann)
        queue.skip(store, ann, task.lease_id, "unclear")
        assert read(ann) == before
        undo(store, ann)
        assert read(ann) == before
        queue.submit(store, ann, task.lease_id, by_text(task))
        assert read(ann) != before
        undo(store, ann)
        assert read(ann) == before
        queue.submit(store, ann, task.lease_id, by_text(task), 3)
        clock.advance(1)
    assert kinds == {"normal", "gold"}


def test_the_total_follows_the_project_and_not_the_answers(
    store: Store, make_project: MakeProject, clock: Clock, read: Reader
) -> None:
    project = make_project(4)
    ann, bo, lead = people(store, "ann", "bo", "lead")
    for who in (ann, bo):
        task = claim(store, who)
        queue.submit(store, who, task.lease_id, by_text(task))
    assert read(ann) == Progress(1, 1, 2, 4)
    decide(store, item_of(store, task.lease_id).id, "subjective", "", decided_by=lead, retire=True)
    add_items(store, project.id, [item_spec(50)])
    clock.advance(progress_module.REFRESH_SECONDS)
    assert read(ann) == Progress(1, 1, 1, 4)
    assert read(bo) == Progress(1, 1, 1, 4), "an own answer to a retired task is not of the total either"


def test_a_screening_project_counts_its_gold(
    store: Store, make_project: MakeProject, clock: Clock, read: Reader
) -> None:
    project = make_project(0, gold_rate=1.0)
    add_items(store, project.id, [item_spec(i, gold_tiers=((0,), (1, 2))) for i in range(3)])
    (ann,) = people(store, "ann")
    assert _steps(store, clock, read, ann) == {"gold": {STEP}}
    assert read(ann) == Progress(3, 3, 3, 3)


def test_what_others_did_is_read_now_and_then(store: Store, make_project: MakeProject, clock: Clock) -> None:
    make_project(5)
    ann, bo = people(store, "ann", "bo")
    lines = ProgressLines(store)
    assert lines.of("helpline", ann).project_done == 0
    task = claim(store, bo)
    queue.submit(store, bo, task.lease_id, by_text(task))
    assert lines.of("helpline", ann).project_done == 0
    assert lines.of("helpline", bo).project_done == 1
    clock.advance(progress_module.REFRESH_SECONDS)
    assert lines.of("helpline", ann).project_done == 1


def test_days_turn_at_midnight_where_people_are(store: Store, make_project: MakeProject, clock: Clock) -> None:
    """An answer at 23:30 UTC is of the next day in Copenhagen, and of the same day in Los Angeles."""
    project = make_project(2)
    (ann,) = people(store, "ann")
    clock.now = datetime(2026, 3, 1, 23, 30, tzinfo=UTC)
    task = claim(store, ann)
    queue.submit(store, ann, task.lease_id, by_text(task))
    lines = ProgressLines(store)

    def today(zone: str) -> tuple[int, int]:
        where = zone_of(zone)
        return lines.of("helpline", ann, where).mine_today, queue.progress(store, "helpline", ann, where).mine_today

    clock.now = datetime(2026, 3, 2, 6, 0, tzinfo=UTC)
    assert {zone: today(zone) for zone in ("UTC", "Europe/Copenhagen", "America/Los_Angeles", "../etc/passwd", "")} == {
        "UTC": (0, 0), "Europe/Copenhagen": (1, 1), "America/Los_Angeles": (1, 1), "../etc/passwd": (0, 0), "": (0, 0),
    }  # fmt: skip
    clock.now = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
    assert today("America/Los_Angeles") == (0, 0)
    # The lead's days are the project's.
    assert overview(store, "helpline").per_day[0] == (date(2026, 3, 1), 1)
    update_settings(store, project.id, replace(project.settings, time_zone="Europe/Copenhagen"), actor="lead")
    seen = overview(store, "helpline")
    assert (seen.per_day, seen.today) == ([(date(2026, 3, 2), 1)], 1)
