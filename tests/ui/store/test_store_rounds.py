"""Nobody is stuck in a qualification round without a lead who sees it, and a round is about gold alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from store_helpers import Clock, MakeProject, by_text, claim, item_of, item_spec, people

from preference_ui import passwords, queue
from preference_ui.db import Store
from preference_ui.export import export_preferences
from preference_ui.models import Membership
from preference_ui.people import create_annotator, update_annotator
from preference_ui.progress import progress
from preference_ui.projects import ProjectInfo, add_items, get_project, update_settings
from preference_ui.qualification import QUALIFIED, QUALIFYING, REFUSED, Standing, held_up, standing_of, start_anew
from preference_ui.reviews import inbox
from preference_ui.set_aside import set_aside


def _project(store: Store, make_project: MakeProject, gold: int, length: int, normal: int = 3) -> ProjectInfo:
    made = make_project(normal, num_responses=2, overlap=2, qualify_items=length)
    add_items(store, made.id, [item_spec(100 + n, 2, gold_tiers=((0,), (1,))) for n in range(gold)])
    return made


def _settings(store: Store, project: ProjectInfo, **changes: int) -> None:
    settings = replace(get_project(store, project.id).settings, **changes)
    update_settings(store, project.id, settings, actor="lead")


def _stands(store: Store, project: ProjectInfo, who: str) -> Standing:
    with store.read() as session:
        return standing_of(session, get_project(store, project.id), who)


def _held_up(store: Store, project: ProjectInfo) -> dict[str, str]:
    with store.read() as session:
        return held_up(session, get_project(store, project.id))


def _answer(store: Store, who: str, *, right: bool = True) -> str:
    task = claim(store, who)
    assert item_of(store, task.lease_id).kind == "gold"
    queue.submit(store, who, task.lease_id, by_text(task, worst_first=not right), task.revision)
    return task.lease_id


def test_a_round_without_gold_left_is_seen_and_ends_when_it_is_made_shorter(
    store: Store, make_project: MakeProject
) -> None:
    project = _project(store, make_project, gold=2, length=3)
    (ann,) = people(store, "ann")
    _answer(store, ann)
    assert _held_up(store, project) == {ann: "gold"}
    _answer(store, ann)
    assert queue.claim(store, "helpline", ann) is None
    _settings(store, project, qualify_items=2)
    assert item_of(store, claim(store, ann).lease_id).kind == "normal"
    assert _stands(store, project, ann) == Standing(QUALIFIED, 2, 2) and _held_up(store, project) == {}


def test_a_skip_does_not_use_gold_up(store: Store, make_project: MakeProject, clock: Clock) -> None:
    project = _project(store, make_project, gold=2, length=2)
    (ann,) = people(store, "ann")
    skipped = []
    for _ in range(2):
        task = claim(store, ann)
        queue.skip(store, ann, task.lease_id, "unclear")
        skipped.append(task.lease_id)
        clock.advance(1)
    assert claim(store, ann).lease_id == skipped[0], "the one skipped longest ago"
    queue.skip(store, ann, skipped[0], "unclear")
    clock.advance(1)
    assert [_answer(store, ann), _answer(store, ann)] == [skipped[1], skipped[0]]
    assert _stands(store, project, ann) == Standing(QUALIFIED, 2, 2)
    assert item_of(store, skipped[0]).skips == item_of(store, skipped[1]).skips == 0


def test_leads_need_no_round_for_as_long_as_they_are_leads(
    store: Store, make_project: MakeProject, clock: Clock
) -> None:
    project = _project(store, make_project, gold=4, length=2)
    (ann,) = people(store, "ann")
    for _ in range(2):
        _answer(store, ann, right=False)
    assert _stands(store, project, ann).state == REFUSED and queue.claim(store, "helpline", ann) is None
    assert _held_up(store, project) == {ann: REFUSED}
    update_annotator(store, ann, actor="lead", role="admin")
    assert _stands(store, project, ann).state == QUALIFIED and _held_up(store, project) == {}
    assert item_of(store, claim(store, ann).lease_id).kind == "normal"
    queue.release_held(store, ann)
    update_annotator(store, ann, actor="lead", role="annotator")
    assert queue.claim(store, "helpline", ann) is None

    bo = create_annotator(store, "bo", role="reviewer").id
    assert item_of(store, claim(store, bo).lease_id).kind == "normal"
    queue.release_held(store, bo)
    update_annotator(store, bo, actor="lead", role="annotator")
    assert item_of(store, claim(store, bo).lease_id).kind == "gold", "what a reviewer may says nothing of an annotator"


def test_only_a_round_that_is_on_keeps_people_out(
    store: Store, make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords.hash_password, "__kwdefaults__", {"log_n": 4, "r": 8, "p": 1})
    project = _project(store, make_project, gold=1, length=1, normal=1)
    ann, bo = (create_annotator(store, name, password="a long password").id for name in ("ann", "bo"))
    _answer(store, bo, right=False)
    _answer(store, ann)
    task = claim(store, ann)
    queue.submit(store, ann, task.lease_id, by_text(task))
    assert [entry.item_id for entry in inbox(store, "helpline")] == [item_of(store, task.lease_id).id]
    _settings(store, project, qualify_items=0)
    assert inbox(store, "helpline") == [] and item_of(store, claim(store, bo).lease_id).kind == "normal"


def test_gold_that_was_set_aside_comes_not_back_in_a_round_begun_anew(
    store: Store, make_project: MakeProject, clock: Clock
) -> None:
    project = _project(store, make_project, gold=4, length=2)
    (ann,) = people(store, "ann")
    before = {_answer(store, ann, right=False) for _ in range(2)}
    set_aside(store, "helpline", ann, "guessing", actor="lead")
    clock.advance(1)
    start_anew(store, "helpline", ann, actor="lead")
    clock.advance(1)
    again = {_answer(store, ann) for _ in range(2)}
    assert not before & again and _stands(store, project, ann) == Standing(QUALIFIED, 2, 2)


def test_the_project_s_line_is_about_normal_tasks(store: Store, make_project: MakeProject, clock: Clock) -> None:
    project = _project(store, make_project, gold=2, length=2)
    (ann,) = people(store, "ann")
    for _ in range(2):
        _answer(store, ann)
    clock.advance(1)
    line = progress(store, "helpline", ann)
    assert (line.mine_total, line.project_done, line.project_total) == (2, 0, 6)
    _settings(store, project, gold_rate=0)
    task = claim(store, ann)
    queue.submit(store, ann, task.lease_id, by_text(task))
    assert progress(store, "helpline", ann).project_done == 1


def test_a_normal_task_held_when_the_round_began_is_given_back(store: Store, make_project: MakeProject) -> None:
    project = _project(store, make_project, gold=1, length=0)
    (ann,) = people(store, "ann")
    held = claim(store, ann)
    _settings(store, project, qualify_items=1)
    assert _answer(store, ann) != held.lease_id
    assert export_preferences(store, "helpline") == []
    assert claim(store, ann).lease_id == held.lease_id, "with its draft, after the round"
    with store.read() as session:
        assert session.get(Membership, (project.id, ann)) is not None
    assert _stands(store, project, ann).state != QUALIFYING
