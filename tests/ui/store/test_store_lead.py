"""What a lead does with the votes: guidelines, decisions, exports of all that was said, margins, first votes."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import event
from store_helpers import MakeProject, by_text, claim, people, shown

from preference_ui import commands, queue
from preference_ui.app.lead_settings import NUMBERS, SWITCHES, form_values, read_form
from preference_ui.backup import verify
from preference_ui.db import Store
from preference_ui.errors import AlreadyDecided, ConfigError, DataError, StaleGuideline, StaleSettings
from preference_ui.export import export_preferences, read_snapshot
from preference_ui.guidelines import publish_guideline
from preference_ui.models import DatasetVersion
from preference_ui.people import create_annotator
from preference_ui.projects import get_guideline, get_project, update_settings
from preference_ui.reviews import Seen, decide, decisions, entry_of, inbox
from preference_ui.settings import Axis
from preference_ui.statistics.between import first_votes, votes_by_item
from preference_ui.statistics.report import _alpha_axes
from preference_ui.versions import freeze, load_version


def _dispute(store: Store, *handles: str, items: int = 1) -> list[str]:
    """Everybody ranks ``items`` tasks, every second person upside down; returns the people."""
    crew = people(store, *handles)
    for number, person in enumerate(crew):
        for _ in range(items):
            task = claim(store, person)
            queue.submit(store, person, task.lease_id, by_text(task, worst_first=number % 2 == 1))
    return crew


def test_a_guideline_written_from_an_older_version_is_refused(store: Store, make_project: MakeProject) -> None:
    project = make_project(1, overlap=2)
    _dispute(store, "ann", "bo")
    lead = create_annotator(store, "lead", role="reviewer").id
    (entry,) = inbox(store, "helpline")
    assert publish_guideline(store, project.id, "v2", reason="", actor=lead, based_on=1) == 2
    with pytest.raises(StaleGuideline, match=r"version 2 .* starts from version 1"):
        publish_guideline(store, project.id, "old", reason="", actor=lead, based_on=1)
    with pytest.raises(StaleGuideline):
        decide(store, entry.item_id, "guideline_unclear", "", decided_by=lead, new_guideline="old", seen=Seen(1, 0))
    assert (get_guideline(store, project.id), decisions(store, entry.item_id)) == ("v2", [])
    assert decide(
        store, entry.item_id, "guideline_unclear", "", decided_by=lead, new_guideline="v3", seen=Seen(2, 0)
    ) == 3  # fmt: skip


def test_of_leads_who_publish_at_once_one_is_heard_and_the_others_are_told(
    store: Store, make_project: MakeProject
) -> None:
    project = make_project(1)
    barrier = threading.Barrier(4)
    outcomes: list[object] = []

    def publish(text: str) -> None:
        barrier.wait()
        try:
            outcomes.append(publish_guideline(store, project.id, text, reason="", actor="lead", based_on=1))
        except StaleGuideline as error:
            outcomes.append(error.version)

    threads = [threading.Thread(target=publish, args=(f"text {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert outcomes == [2, 2, 2, 2] and get_project(store, project.id).guideline_version == 2
    assert verify(store).ok


def test_a_decision_on_what_somebody_has_decided_is_refused(store: Store, make_project: MakeProject) -> None:
    make_project(1, overlap=2)
    _dispute(store, "ann", "bo")
    first, second = (create_annotator(store, name, role="reviewer").id for name in ("first", "second"))
    (entry,) = inbox(store, "helpline")
    decide(store, entry.item_id, "subjective", "", decided_by=first, seen=Seen(None, entry.num_decisions))
    with pytest.raises(AlreadyDecided, match="first has decided"):
        decide(store, entry.item_id, "rater_error", "lost?", decided_by=second, seen=Seen(None, entry.num_decisions))
    assert [d.verdict for d in decisions(store, entry.item_id)] == ["subjective"]
    again = entry_of(store, "helpline", entry.item_id)
    assert again is not None and again.num_decisions == 1
    decide(store, entry.item_id, "rater_error", "", decided_by=second, retire=True, seen=Seen(None, 1))
    assert queue.claim(store, "helpline", create_annotator(store, "cy").id) is None


def test_everything_that_was_said_comes_out(store: Store, make_project: MakeProject, tmp_path: Path) -> None:
    make_project(1, axes=(Axis("helpful"),), flags=("pii",))
    (ann,) = people(store, "ann")
    task = claim(store, ann)
    vote = replace(
        by_text(task), all_bad=True, rationale="A leaks", ratings={0: {"helpful": 2}, 1: {"helpful": 7}},
        flags=[(None, "pii"), (0, "pii")],
    )  # fmt: skip
    queue.submit(store, ann, task.lease_id, vote)
    order = shown(store, task.lease_id)
    table = commands.prefs_export(store, "helpline", tmp_path / "votes.jsonl", file_format="judgments")
    assert table.rows[0][2] == "1"
    (line,) = (tmp_path / "votes.jsonl").read_text("utf-8").splitlines()
    values = json.loads(line)
    assert values["flags"] == [{"response": None, "code": "pii"}, {"response": order[0], "code": "pii"}]
    assert sorted((r["response"], r["axis"], r["value"]) for r in values["ratings"]) == sorted(
        [(order[0], "helpful", 2), (order[1], "helpful", 7)]
    )
    assert values["all_bad"] is True and values["prompt"][0]["content"] == "question 0"
    assert values["shown"] == order and values["rationale"] == "A leaks"
    assert "ann" not in (values["rater"], *values) and "annotator_id" not in values
    version = freeze(store, "helpline")
    assert json.loads((version.path / "judgments.jsonl").read_text("utf-8")) == values
    with pytest.raises(DataError, match="no votes to export yet"):
        make_project(1, name="empty")
        commands.prefs_export(store, "empty", tmp_path / "none", file_format="judgments")


def test_flagged_items_come_to_the_inbox_behind_those_in_dispute(store: Store, make_project: MakeProject) -> None:
    make_project(3, overlap=2, flags=("pii",))
    ann, bo = people(store, "ann", "bo")
    for person in (ann, bo):
        for index in range(3):
            task = claim(store, person)
            vote = by_text(task, worst_first=person == bo and index == 2)
            queue.submit(store, person, task.lease_id, replace(vote, flags=[(0, "pii")] if index == 1 else []))
    disputed, flagged = inbox(store, "helpline")
    assert (disputed.agreement, flagged.agreement) == (0.0, 1.0)
    assert [v.flags for v in disputed.votes] == [(), ()]
    assert {code for v in flagged.votes for _, code in v.flags} == {"pii"}
    assert [e.item_id for e in inbox(store, "helpline", limit=1)] == [disputed.item_id, flagged.item_id]
    lead = create_annotator(store, "lead", role="reviewer").id
    decide(store, flagged.item_id, "subjective", "", decided_by=lead)
    assert [e.item_id for e in inbox(store, "helpline")] == [disputed.item_id]


def test_one_item_is_read_without_the_others(store: Store, make_project: MakeProject) -> None:
    make_project(4, overlap=2)
    _dispute(store, "ann", "bo", items=4)
    entries = inbox(store, "helpline")
    assert len(entries) == 4
    fetched = []
    with store.read() as session:
        assert len(read_snapshot(session, "helpline", item_ids=[entries[0].item_id]).judgments) == 2

    @event.listens_for(store.engine, "after_cursor_execute")
    def note(connection: object, cursor: object, statement: str, parameters: object, *_: object) -> None:
        fetched.append(parameters)

    entry = entry_of(store, "helpline", entries[0].item_id)
    assert entry == entries[0]
    others = {e.item_id for e in entries[1:]}
    assert not any(item in repr(parameters) for item in others for parameters in fetched)
    assert entry_of(store, "helpline", "no-such-item") is None


def test_margins_of_past_votes_outlive_the_question(store: Store, make_project: MakeProject) -> None:
    margins = (0.0, 0.5, 2.0)
    project = make_project(1, num_responses=2, strength_margins=margins)
    (ann,) = people(store, "ann")
    task = claim(store, ann)
    queue.submit(store, ann, task.lease_id, replace(by_text(task), strength=2))
    settings = project.settings
    for asked in (False, True):
        form = [getattr(settings, name) for name in (*NUMBERS, *SWITCHES)]
        settings = read_form(settings, (*form, 15.0, 1.0, asked, "", "", "UTC"))
        update_settings(store, project.id, settings, actor=ann)
        assert settings.strength_margins == margins and settings.strength_levels == (3 if asked else 0)
        assert [row.margin for row in export_preferences(store, "helpline")] == [2.0]


def test_the_form_writes_what_was_changed_over_what_it_was_filled_with(store: Store, make_project: MakeProject) -> None:
    project = make_project(1, repeat_after_seconds=1.0, lease_seconds=100.0, flags=("pii",))
    shown = form_values(project.settings)
    assert (shown["repeat_days"], shown["lease_minutes"]) == (0.0, 1.6667), "rounded"
    assert read_form(project.settings, tuple((shown | {"flags": "pii\r\n"}).values())) == project.settings
    changed = read_form(project.settings, tuple((shown | {"max_skips": 9}).values()))
    assert changed == replace(project.settings, max_skips=9)
    for bad, words in (({"lease_minutes": 4}, "at least 5"), ({"overlap": None}, "needs a number"),
                       ({"axes": "a b"}, "must be a name"), ({"time_zone": "Mars"}, "no time zone")):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            read_form(project.settings, tuple((shown | bad).values()))
    theirs = replace(project.settings, overlap=3)
    update_settings(store, project.id, theirs, actor="one", based_on=project.settings)
    with pytest.raises(StaleSettings, match="changed meanwhile"):
        update_settings(store, project.id, changed, actor="other", based_on=project.settings)
    assert get_project(store, project.id).settings == theirs


def test_a_version_is_rebuilt_with_the_margins_that_it_was_frozen_with(store: Store, make_project: MakeProject) -> None:
    project = make_project(1, num_responses=2, strength_margins=(0.0, 0.5, 2.0))
    (ann,) = people(store, "ann")
    task = claim(store, ann)
    queue.submit(store, ann, task.lease_id, replace(by_text(task), strength=2))
    version = freeze(store, "helpline")
    rows = load_version(store, "helpline", 1)
    update_settings(store, project.id, replace(project.settings, strength_margins=(0.0, 1.0, 3.0)), actor="lead")
    shutil.rmtree(version.path)
    assert load_version(store, "helpline", 1) == rows and rows[0].margin == 2.0
    # A version of an earlier program says nothing of margins: with today's it cannot be built again, and says so.
    with store.engine.begin() as connection:
        options = connection.exec_driver_sql(f"SELECT options_json FROM {DatasetVersion.__tablename__}").scalar_one()
        older = {name: value for name, value in json.loads(options).items() if name != "strength_margins"}
        marker = "%s" if store.is_postgres else "?"
        connection.exec_driver_sql(f"UPDATE dataset_version SET options_json = {marker}", (json.dumps(older),))
    with pytest.raises(DataError, match="is lost"):
        load_version(store, "helpline", 1)
    update_settings(store, project.id, project.settings, actor="lead")
    assert load_version(store, "helpline", 1) == rows


def test_figures_of_agreement_count_the_votes_that_an_item_was_made_for(
    store: Store, make_project: MakeProject
) -> None:
    """The third vote comes only on dispute; it stays out, also after a change of mind and of the settings."""
    project = make_project(1, overlap=2, adaptive_extra=1, axes=(Axis("helpful"),))
    leases = {}
    for handle, upside_down, value in (("ann", False, 1), ("bo", True, 7), ("cy", False, 1)):
        (person,) = people(store, handle)
        task = claim(store, person)
        ratings = {slot: {"helpful": value if slot == 0 else 4} for slot in range(3)}
        vote = replace(by_text(task, worst_first=upside_down), ratings=ratings)
        queue.submit(store, person, task.lease_id, vote)
        leases[handle] = (person, task, vote)
    before = commands.report_of(store, "helpline")
    assert before.pair_agreement.value == 0.0 and set(before.kappa) == {("ann", "bo")}
    # The axis' figure takes the same two people: with the third it would be another.
    with store.read() as session:
        snapshot = read_snapshot(session, "helpline")
    items = votes_by_item(snapshot.judgments)
    assert before.alpha_axes == _alpha_axes(first_votes(items, snapshot.extended)) != _alpha_axes(items)
    # Ann changes her mind a little after Cy has voted: she still is one of the first two.
    person, task, vote = leases["ann"]
    queue.submit(store, person, task.lease_id, replace(vote, rationale="on second thoughts"), 2)
    update_settings(store, project.id, replace(project.settings, overlap=3, adaptive_extra=0), actor="lead")
    after = commands.report_of(store, "helpline")
    assert (after.pair_agreement, after.kappa, after.alpha_axes) == (
        before.pair_agreement, before.kappa, before.alpha_axes
    )  # fmt: skip
