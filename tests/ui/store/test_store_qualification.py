"""The qualification round: gold first, and normal work for those who have enough of it right."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from sqlalchemy import inspect, select
from store_helpers import Clock, MakeProject, by_text, claim, count, item_of, item_spec, people

from preference_ui import migrations, passwords, queue
from preference_ui.backup import verify
from preference_ui.db import Store
from preference_ui.errors import DataError, LeaseError
from preference_ui.events import tail
from preference_ui.export import export_preferences
from preference_ui.models import Base, Item, Membership
from preference_ui.people import create_annotator
from preference_ui.projects import ProjectInfo, add_items, get_project, update_settings
from preference_ui.qualification import QUALIFIED, QUALIFYING, REFUSED, Standing, let_pass, standing_of, start_anew
from preference_ui.ranking import follows_key
from preference_ui.reviews import inbox

ROUND = 4


@pytest.fixture
def project(store: Store, make_project: MakeProject) -> ProjectInfo:
    """Three normal tasks, and twice as much gold as a round takes; its key is the order of the texts."""
    made = make_project(3, num_responses=2, overlap=2, qualify_items=ROUND, qualify_share=0.75)
    gold = [item_spec(100 + n, 2, gold_tiers=((0,), (1,))) for n in range(2 * ROUND)]
    add_items(store, made.id, gold)
    return made


def _stands(store: Store, project: ProjectInfo, who: str) -> Standing:
    with store.read() as session:
        return standing_of(session, get_project(store, project.id), who)


def _answer(store: Store, who: str, *, right: bool = True) -> str:
    """Answers a gold task; returns its lease."""
    task = claim(store, who)
    assert item_of(store, task.lease_id).kind == "gold"
    queue.submit(store, who, task.lease_id, by_text(task, worst_first=not right), task.revision)
    return task.lease_id


def _events(store: Store) -> list[tuple[str, str, dict[str, int]]]:
    with store.read() as session:
        return [(e.action, e.actor, json.loads(e.payload_json)) for e in tail(session, 0) if e.entity == "membership"]


def test_who_has_enough_right_goes_on_to_normal_work(store: Store, project: ProjectInfo) -> None:
    (ann,) = people(store, "ann")
    assert _stands(store, project, ann) == Standing(QUALIFYING)
    for number in range(ROUND - 1):
        _answer(store, ann, right=number > 0)
        assert _stands(store, project, ann) == Standing(QUALIFYING, number + 1, number)
    last = claim(store, ann)
    following = queue.submit(store, ann, last.lease_id, by_text(last), claim_next=True).next
    assert _stands(store, project, ann) == Standing(QUALIFIED, ROUND, ROUND - 1)
    assert following is not None and item_of(store, following.lease_id).kind == "normal"
    assert _events(store) == [
        ("membership.begin", ann, {"state": QUALIFYING}),
        ("membership.pass", "system", {"answered": ROUND, "right": ROUND - 1}),
    ]
    assert export_preferences(store, "helpline") == [], "gold only measures"
    queue.submit(store, ann, following.lease_id, by_text(following))
    assert len(export_preferences(store, "helpline")) == 1
    assert verify(store).ok


def test_who_has_not_gets_nothing_more_until_a_lead_decides(store: Store, project: ProjectInfo, clock: Clock) -> None:
    ann, bo, lead = people(store, "ann", "bo", "lead")
    seen = {item_of(store, _answer(store, ann, right=number < 2)).id for number in range(ROUND)}
    assert _stands(store, project, ann) == Standing(REFUSED, ROUND, 2)
    assert queue.claim(store, "helpline", ann) is None
    normal = store_normal(store)
    with pytest.raises(LeaseError, match="qualification round"):
        queue.reserve(store, "helpline", ann, normal)

    clock.advance(60)
    start_anew(store, "helpline", ann, actor=lead)
    assert _stands(store, project, ann) == Standing(QUALIFYING)
    clock.advance(1)
    old = queue.last_decided(store, "helpline", ann)
    assert old is not None
    task = queue.recall(store, ann, old)
    queue.submit(store, ann, old, by_text(task), task.revision)
    assert _stands(store, project, ann).answered == 0, "an old answer that is changed is none of the new round"
    again = {item_of(store, _answer(store, ann)).id for _ in range(ROUND)}
    assert not seen & again and _stands(store, project, ann) == Standing(QUALIFIED, ROUND, ROUND)
    task = claim(store, ann)
    assert item_of(store, task.lease_id).kind == "normal"
    clock.advance(60)
    with pytest.raises(DataError, match="0 gold tasks are new to this person and a round has 4"):
        start_anew(store, "helpline", ann, actor=lead)
    let_pass(store, "helpline", ann, actor=lead)
    assert claim(store, ann).lease_id == task.lease_id

    let_pass(store, "helpline", bo, actor=lead)
    assert item_of(store, claim(store, bo).lease_id).kind == "normal", "before any round"
    assert [action for action, *_ in _events(store)][-4:] == [
        "membership.retry", "membership.pass", "membership.let_pass", "membership.let_pass"
    ]  # fmt: skip
    for act in (let_pass, start_anew):
        with pytest.raises(DataError, match="no annotator"):
            act(store, "helpline", "nobody", actor=lead)
    assert verify(store).ok


def store_normal(store: Store) -> str:
    """A normal item."""
    with store.read() as session:
        return session.scalars(select(Item.id).where(Item.kind == "normal")).first() or ""


def test_answers_that_are_taken_back_or_changed_count_as_they_stand(store: Store, project: ProjectInfo) -> None:
    (ann,) = people(store, "ann")
    lease = _answer(store, ann, right=False)
    assert _stands(store, project, ann) == Standing(QUALIFYING, 1, 0)
    task = queue.recall(store, ann, lease)
    queue.submit(store, ann, lease, by_text(task), task.revision)
    assert _stands(store, project, ann) == Standing(QUALIFYING, 1, 1)
    task = queue.withdraw(store, ann, lease)
    assert _stands(store, project, ann) == Standing(QUALIFYING)
    queue.submit(store, ann, lease, by_text(task), task.revision)
    assert _stands(store, project, ann) == Standing(QUALIFYING, 1, 1)


def test_who_has_ranked_here_leads_and_projects_without_a_round_need_none(
    store: Store, make_project: MakeProject, clock: Clock
) -> None:
    project = make_project(4, num_responses=2)
    add_items(store, project.id, [item_spec(100, 2, gold_tiers=((0,), (1,)))])
    (ann, bo) = people(store, "ann", "bo")
    lead = create_annotator(store, "lead", role="reviewer").id
    task = claim(store, ann)
    queue.submit(store, ann, task.lease_id, by_text(task))
    assert count(store, Membership) == 0
    update_settings(store, project.id, replace(project.settings, qualify_items=1), actor=lead)
    kinds = {who: item_of(store, claim(store, who).lease_id).kind for who in (ann, lead, bo)}
    assert kinds == {ann: "normal", lead: "normal", bo: "gold"}
    assert _stands(store, project, bo).state == QUALIFYING
    update_settings(store, project.id, project.settings, actor=lead)
    queue.release_held(store, bo)
    assert _stands(store, project, bo).state == QUALIFIED


def test_people_outside_are_not_counted_on(store: Store, project: ProjectInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether anybody is left to take a task: who has not passed is not."""
    monkeypatch.setattr(passwords.hash_password, "__kwdefaults__", {"log_n": 4, "r": 8, "p": 1})
    ann, bo = (create_annotator(store, name, password="a long password").id for name in ("ann", "bo"))
    let_pass(store, "helpline", ann, actor="lead")
    task = claim(store, ann)
    queue.submit(store, ann, task.lease_id, by_text(task))
    assert inbox(store, "helpline") == [], "bo may pass yet"
    for _ in range(ROUND):
        _answer(store, bo, right=False)
    (entry,) = inbox(store, "helpline")
    assert (entry.item_id, entry.is_short) == (item_of(store, task.lease_id).id, True)


def test_a_keys_ties_may_stand_in_any_order() -> None:
    key = [["a"], ["b", "c"]]
    assert follows_key([["a"], ["c"], ["b"]], key) and follows_key([["a"], ["b", "c"]], key)
    assert not follows_key([["a", "b"], ["c"]], key) and not follows_key([["b"], ["a"], ["c"]], key)


def test_stores_of_the_second_schema_come_up_and_go_back(
    store: Store, make_project: MakeProject, project: ProjectInfo
) -> None:
    """Down to each older schema and up again: votes stay, memberships go with their table."""
    (ann,) = people(store, "ann")
    for _ in range(ROUND):
        _answer(store, ann)
    task = claim(store, ann)
    queue.submit(store, ann, task.lease_id, by_text(task))
    for older in ("0002", "0001"):
        migrations.downgrade(store.engine, older)
        with store.engine.connect() as connection:
            assert "membership" not in inspect(connection).get_table_names()
        store.close()
        migrations.upgrade(store.engine)
        with store.engine.connect() as connection:
            assert set(inspect(connection).get_table_names()) - {"alembic_version"} == set(Base.metadata.tables)
        assert count(store, Membership) == 0 and len(export_preferences(store, "helpline")) == 1
        assert _stands(store, project, ann).state == QUALIFIED, "she has ranked here"
        assert verify(store).ok
