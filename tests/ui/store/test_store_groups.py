"""Tasks for a group of people: who gets them, what becomes of a task whose group somebody loses, what leads see."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import inspect, select, update
from store_helpers import Clock, MakeProject, by_text, claim, count, item_of, item_spec, people

from preference_ui import commands, group_commands, migrations, passwords, queue
from preference_ui.backup import verify
from preference_ui.db import Store
from preference_ui.errors import DataError, LeaseError, OtherGroup, StaleAccount
from preference_ui.events import tail
from preference_ui.export import export_preferences
from preference_ui.groups import MAX_GROUPS, groups_of, parse_groups, words_in_use
from preference_ui.memberships import set_groups
from preference_ui.models import Base, Item, MemberGroup
from preference_ui.overview import GroupCoverage, overview
from preference_ui.people import create_annotator
from preference_ui.progress import Progress, ProgressLines
from preference_ui.projects import ProjectInfo, add_items, get_project
from preference_ui.reviews import inbox


@pytest.fixture(autouse=True)
def _cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords.hash_password, "__kwdefaults__", {"log_n": 4, "r": 8, "p": 1})


@pytest.fixture
def project(store: Store, make_project: MakeProject) -> ProjectInfo:
    """Two tasks each for anybody, Danish and Chinese; the most urgent of all is Chinese, the least Danish."""
    made = make_project(2, num_responses=2, overlap=2)
    _add(store, made, "da", 10, 11, priority=-1.0)
    _add(store, made, "zh", 20, 21, priority=1.0)
    return made


def _add(store: Store, project: ProjectInfo, group: str, *numbers: int, **more: object) -> list[str]:
    return add_items(store, project.id, [item_spec(n, 2, group=group, **more) for n in numbers])


def _drain(store: Store, who: str) -> list[str]:
    """Groups of all that somebody gets, in order."""
    groups = []
    while (task := queue.claim(store, "helpline", who)) is not None:
        groups.append(item_of(store, task.lease_id).group)
        queue.submit(store, who, task.lease_id, by_text(task), task.revision)
    return groups


def _person(store: Store, handle: str, *groups: str, role: str = "annotator") -> str:
    who = create_annotator(store, handle, role=role, password="a long password").id
    set_groups(store, "helpline", who, groups, actor="lead")
    return who


def test_a_task_with_a_group_goes_only_to_people_who_have_it(store: Store, project: ProjectInfo) -> None:
    ann, bo = _person(store, "ann", "da"), _person(store, "bo")
    both, boss = _person(store, "cy", "zh", "da"), _person(store, "boss", "zh", role="admin")
    # Begun tasks come first, then urgent ones, over all groups of a person.
    assert _drain(store, ann) == ["", "", "da", "da"]
    assert _drain(store, both) == ["", "", "da", "da", "zh", "zh"]
    assert _drain(store, bo) == [], "what is for anybody is complete"
    late = _add(store, project, "", 30)
    assert _drain(store, bo) == [""]
    assert _drain(store, boss) == ["zh", "zh", ""]
    assert count(store, Item, Item.group == "da", Item.state == "done") == 2
    with pytest.raises(LeaseError, match="no room for you"):
        queue.reserve(store, project.id, bo, _add(store, project, "da", 31)[0])
    assert late and verify(store).ok


def test_gold_repeats_and_the_round_keep_to_the_groups(store: Store, make_project: MakeProject, clock: Clock) -> None:
    project = make_project(0, overlap=2, qualify_items=2, repeat_rate=1.0, repeat_after_seconds=0)
    for group, number in (("zh", 40), ("da", 41), ("", 42)):
        _add(store, project, group, number, gold_tiers=((0,), (1,)), priority=float(-number))
    _add(store, project, "da", 1, 2)
    ann, bo = _person(store, "ann", "da"), _person(store, "bo")
    task = claim(store, bo)
    assert (item_of(store, task.lease_id).kind, item_of(store, task.lease_id).group) == ("gold", "")
    assert queue.submit(store, bo, task.lease_id, by_text(task), claim_next=True).next is None, "no more gold for bo"
    seen = []
    for _ in range(3):
        task = claim(store, ann)
        seen.append((item_of(store, task.lease_id).kind, item_of(store, task.lease_id).group))
        queue.submit(store, ann, task.lease_id, by_text(task))
        clock.advance(5)
    assert seen == [("gold", "da"), ("gold", ""), ("normal", "da")]
    _add(store, project, "", 50, 51)
    again = claim(store, ann)
    assert (item_of(store, again.lease_id).kind, item_of(store, again.lease_id).group) == ("repeat", "da")
    queue.release(store, ann, again.lease_id)
    set_groups(store, "helpline", ann, (), actor="lead")
    task = claim(store, ann)
    assert (item_of(store, task.lease_id).kind, item_of(store, task.lease_id).group) == ("normal", "")


def test_who_loses_a_group_may_finish_and_loses_no_work(store: Store, project: ProjectInfo, clock: Clock) -> None:
    ann = _person(store, "ann", "da", "zh")
    first = claim(store, ann)
    assert item_of(store, first.lease_id).group == "zh"
    second = queue.submit(store, ann, first.lease_id, by_text(first), claim_next=True).next
    assert second is not None
    third = queue.skip(store, ann, second.lease_id, "unclear", claim_next=True)
    assert third is not None and item_of(store, third.lease_id).group == ""
    queue.release(store, ann, third.lease_id)
    other = claim(store, ann)
    assert other.lease_id == third.lease_id
    set_groups(store, "helpline", ann, ("da",), actor="lead")
    # Neither the answer nor the skip in the lost group leads back to its task; the answer can be changed where it is.
    for lease in (first.lease_id, second.lease_id):
        with pytest.raises(OtherGroup, match="no longer yours"):
            queue.withdraw(store, ann, lease)
    assert claim(store, ann).lease_id == other.lease_id, "the refusal gave nothing back"
    task = queue.recall(store, ann, first.lease_id)
    assert queue.submit(store, ann, first.lease_id, by_text(task, worst_first=True), task.revision).counted

    set_groups(store, "helpline", ann, ("da", "zh"), actor="lead")
    queue.submit(store, ann, other.lease_id, by_text(other))
    while item_of(store, (held := claim(store, ann)).lease_id).group != "da":
        queue.submit(store, ann, held.lease_id, by_text(held))
    set_groups(store, "helpline", ann, (), actor="lead")
    assert claim(store, ann).lease_id == held.lease_id, "what is held stays"
    queue.renew(store, ann, held.lease_id)
    queue.save_draft(store, ann, held.lease_id, {"tiers": [[0], [1]]})
    queue.release(store, ann, held.lease_id)
    assert queue.claim(store, "helpline", ann) is None, "given back, it is for others"
    receipt = queue.submit(store, ann, held.lease_id, by_text(held))
    assert receipt.counted and queue.claim(store, "helpline", ann) is None
    assert verify(store).ok


def test_the_next_search_follows_a_change_of_groups(store: Store, project: ProjectInfo) -> None:
    """The place where the last one ended lies behind the urgent tasks of the new group."""
    ann = _person(store, "ann")
    task = claim(store, ann)
    following = queue.submit(store, ann, task.lease_id, by_text(task), claim_next=True).next
    assert following is not None and item_of(store, following.lease_id).group == ""
    set_groups(store, "helpline", ann, ("zh",), actor="lead")
    following = queue.submit(store, ann, following.lease_id, by_text(following), claim_next=True).next
    assert following is not None and item_of(store, following.lease_id).group == "zh"


def test_every_change_is_one_event_and_words_are_checked(store: Store, project: ProjectInfo) -> None:
    (ann,) = people(store, "ann")
    assert set_groups(store, "helpline", ann, (" zh ", "da", "da", ""), actor="lead") == ("da", "zh")
    set_groups(store, "helpline", ann, ("zh", "da"), actor="lead", seen=("zh", "da"))
    set_groups(store, project.id, ann, parse_groups("da， cafe\u0301"), actor="lead")
    with store.read() as session:
        events = [e for e in tail(session, 0) if e.action == "membership.groups"]
        assert groups_of(session, project.id, ann) == ("caf\u00e9", "da")
        assert words_in_use(session, project.id) == ["da", "zh"]
    assert [(e.actor, e.entity_id, json.loads(e.payload_json)) for e in events] == [
        ("lead", f"{project.id}/{ann}", {"before": [], "groups": ["da", "zh"]}),
        ("lead", f"{project.id}/{ann}", {"before": ["da", "zh"], "groups": ["caf\u00e9", "da"]}),
    ]
    with pytest.raises(StaleAccount, match="ann"):
        set_groups(store, "helpline", ann, (), actor="lead", seen=("da",))
    bad: tuple[Any, ...] = ("x" * 65, "a,b", "a\u200bb", "a\nb", "\ud800", "a\0", 5)
    for word in bad:
        with pytest.raises(DataError, match="groups: "):
            set_groups(store, "helpline", ann, (word,), actor="lead")
    with pytest.raises(DataError, match="too many"):
        set_groups(store, "helpline", ann, map(str, range(MAX_GROUPS + 1)), actor="lead")
    with pytest.raises(DataError, match="no annotator"):
        set_groups(store, "helpline", "nobody", (), actor="lead")
    with pytest.raises(DataError, match="item 0: field 'group'"):
        add_items(store, project.id, [item_spec(90, group="a,b")])
    assert verify(store).ok


def test_the_progress_line_counts_what_somebody_may_get(store: Store, project: ProjectInfo) -> None:
    ann, bo = _person(store, "ann", "da"), _person(store, "bo")
    lines = ProgressLines(store)
    assert lines.of("helpline", ann) == Progress(0, 0, 0, 8)
    assert [queue.progress(store, "helpline", who) for who in (ann, bo)] == [Progress(0, 0, 0, 8), Progress(0, 0, 0, 4)]
    assert len(_drain(store, ann)) == 4
    assert queue.progress(store, "helpline", ann) == Progress(4, 4, 4, 8)
    assert queue.progress(store, "helpline", bo) == Progress(0, 0, 2, 4)
    set_groups(store, "helpline", ann, (), actor="lead")
    assert queue.progress(store, "helpline", ann) == Progress(4, 4, 2, 4), "of what is for anybody"
    assert lines.of("helpline", ann) == Progress(4, 4, 2, 4), "at once"
    assert queue.progress(store, "helpline", bo) == Progress(0, 0, 2, 4)


def test_work_that_is_all_for_others_is_no_screening_project(store: Store, make_project: MakeProject) -> None:
    project = make_project(0, gold_rate=0.5)
    _add(store, project, "", 1, gold_tiers=((0,), (1,)))
    _add(store, project, "da", 2)
    (bo,) = people(store, "bo")
    assert queue.claim(store, "helpline", bo) is None
    assert queue.progress(store, "helpline", bo) == Progress(0, 0, 0, 0)


def test_leads_see_votes_and_people_by_group_and_who_is_missing(store: Store, project: ProjectInfo) -> None:
    ann, bo = _person(store, "ann", "da"), _person(store, "bo")
    create_annotator(store, "no password")
    assert overview(store, "helpline").groups == {
        "": GroupCoverage(0, 4, 2), "da": GroupCoverage(0, 4, 1), "zh": GroupCoverage(0, 4, 0),
    }  # fmt: skip
    assert [name for name, group in overview(store, "helpline").groups.items() if group.is_stuck] == ["zh"]
    assert inbox(store, "helpline") == []
    # Danish tasks want a second vote that nobody is left to give, whoever else has had fewer tasks.
    _drain(store, ann)
    stranded = {entry.item_id for entry in inbox(store, "helpline")}
    with store.read() as session:
        assert stranded == set(session.scalars(select(Item.id).where(Item.group == "da")))
    set_groups(store, "helpline", bo, ("da", "zh"), actor="lead")
    assert inbox(store, "helpline") == []
    _drain(store, bo)
    with store.read() as session:
        chinese = set(session.scalars(select(Item.id).where(Item.group == "zh")))
    assert {entry.item_id for entry in inbox(store, "helpline")} == chinese
    set_groups(store, "helpline", bo, (), actor="lead")
    assert inbox(store, "helpline") == [], "of a group that nobody has the overview speaks, once"


def test_the_command_line_gives_groups_and_tells_who_is_missing(store: Store, project: ProjectInfo) -> None:
    people(store, "ann", "bo")
    coverage, having = group_commands.prefs_groups(store, "helpline", "ann", "da, medical")
    assert having.rows == [("ann", "annotator", "da, medical")]
    assert [row[:3] for row in coverage.rows] == [("(none)", "0", "4"), ("da", "0", "4"), ("zh", "0", "4")]
    assert coverage.notes[0].startswith("nobody can take: da, zh;"), "nobody of them can log in"
    *_, having = group_commands.prefs_groups(store, "helpline")
    assert [row[0] for row in having.rows] == ["ann"]
    *_, having = group_commands.prefs_groups(store, "helpline", "ANN", "")
    assert having.rows == [("ann", "annotator", "(none)")]
    for handle, words, what in (("cy", None, "no annotator 'cy'"), (None, "da", "--set needs the person")):
        with pytest.raises(DataError, match=what):
            group_commands.prefs_groups(store, "helpline", handle, words)
    assert [table.title for table in commands.prefs_stats(store, "helpline")][-1] == "groups"


def test_projects_without_groups_are_told_nothing_of_them(store: Store, make_project: MakeProject) -> None:
    make_project(1)
    assert overview(store, "helpline").groups == {}
    assert [table.title for table in commands.prefs_stats(store, "helpline")][-1] == "coverage"


def test_stores_of_the_third_schema_come_up_and_go_back(store: Store, make_project: MakeProject) -> None:
    """Up: everything is for anybody. Down: groups go with their column and table, votes stay."""
    make_project(2, num_responses=2)
    ann, bo = people(store, "ann", "bo")
    task = claim(store, ann)
    queue.submit(store, ann, task.lease_id, by_text(task))
    migrations.downgrade(store.engine, "0003")
    with store.engine.connect() as connection:
        assert "member_group" not in inspect(connection).get_table_names()
        assert "group" not in {column["name"] for column in inspect(connection).get_columns("item")}
    store.close()
    migrations.upgrade(store.engine)
    with store.engine.connect() as connection:
        assert set(inspect(connection).get_table_names()) - {"alembic_version"} == set(Base.metadata.tables)
        indexes = {index["name"]: index["column_names"] for index in inspect(connection).get_indexes("item")}
    assert indexes["ix_item_queue"][:4] == indexes["ix_item_gold"][:4] == ["project_id", "kind", "state", "group"]
    assert (count(store, MemberGroup), count(store, Item, Item.group == "")) == (0, 2)
    assert _drain(store, bo) == [""] and len(export_preferences(store, "helpline")) == 2
    store.transact(lambda tx: tx.session.execute(update(Item).values(group="da")))
    set_groups(store, "helpline", ann, ("da",), actor="lead")
    migrations.downgrade(store.engine, "0003")
    store.close()
    migrations.upgrade(store.engine)
    assert count(store, MemberGroup) == 0 and get_project(store, "helpline").name == "helpline"
    assert len(export_preferences(store, "helpline")) == 2 and verify(store).ok
