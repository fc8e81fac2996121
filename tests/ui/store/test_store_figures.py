"""The lead's figures are read lightly and kept up to date, and are the same as read whole."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from pathlib import Path

from store_helpers import MakeProject, by_text, claim, people, undo

from preference_ui import queue
from preference_ui.agreements import Agreements, agreements
from preference_ui.commands import report_of
from preference_ui.db import Store
from preference_ui.export import read_snapshot
from preference_ui.importing import import_file
from preference_ui.overview import overview
from preference_ui.people import find_annotator
from preference_ui.queue import Vote
from preference_ui.reviews import inbox
from preference_ui.set_aside import restore, set_aside
from preference_ui.settings import Axis
from preference_ui.statistics import project_report


def test_agreements_follow_the_chain(store: Store, make_project: MakeProject) -> None:
    project = make_project(6, overlap=3)
    crew = people(store, "ann", "bo", "cy")
    known = Agreements()
    orders = random.Random(2)

    def check() -> dict[str, float]:
        with store.read() as session:
            whole, kept = agreements(session, project.id), known.read(session, project.id)
        assert kept == whole
        assert inbox(store, "helpline", known=known) == inbox(store, "helpline")
        return kept

    assert check() == {}
    seen = []
    for _ in range(5):
        for who in crew:
            task = claim(store, who)
            order = orders.sample(range(3), 3)
            queue.submit(store, who, task.lease_id, Vote([[slot] for slot in order]))
            seen.append((who, task))
        check()
    who, task = seen[0]
    queue.submit(store, who, task.lease_id, by_text(task, worst_first=True), revision=2)
    before = check()
    undo(store, crew[1])
    check()
    set_aside(store, "helpline", crew[2], "random", actor="lead")
    assert len(check()) <= len(before)
    restore(store, "helpline", crew[2], actor="lead")
    assert check()


def test_a_reading_without_texts_gives_the_same_report(store: Store, make_project: MakeProject) -> None:
    make_project(4, overlap=2, axes=(Axis("helpful"),), flags=("pii",), allow_edits=True)
    for who in people(store, "ann", "bo"):
        for number in range(3):
            task = claim(store, who)
            vote = dataclasses.replace(
                by_text(task, worst_first=number == 1), rationale="why", ratings={0: {"helpful": 3}},
                flags=[(1, "pii")], edits={2: "better"})  # fmt: skip
            queue.submit(store, who, task.lease_id, vote)
    with store.read() as session:
        whole, light = (read_snapshot(session, "helpline", texts=texts) for texts in (True, False))
    assert str(project_report(light)) == str(project_report(whole)), "as texts: some figures are NaN"
    assert light.lengths == whole.lengths == {name: len(text) for name, text in whole.texts.items()}
    assert not light.texts and not light.prompts and not any(j.rationale or j.edits or j.flags for j in light.judgments)
    assert [j.ratings for j in light.judgments] == [j.ratings for j in whole.judgments] != []


def test_imported_rankings_have_no_places(store: Store, make_project: MakeProject, tmp_path: Path) -> None:
    """Their ``shown`` is a permutation that nobody saw; whoever changes such an answer here has seen it."""
    project = make_project(4, overlap=2)
    rows = [{"prompt": f"q{n}", "responses": ["a", "b", "c"], "tiers": [[0], [1], [2]]} for n in range(30)]
    path = tmp_path / "ranked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert import_file(store, project.id, path, rater="ann").num_rankings == 30
    (bo,) = people(store, "bo")
    for _ in range(4):
        task = claim(store, bo)
        queue.submit(store, bo, task.lease_id, Vote([[0], [1], [2]]))
    ann = find_annotator(store, "ann")
    assert ann is not None
    report = report_of(store, "helpline")
    assert (report.votes, report.first_slot.num_units, report.first_slot.value) == (34, 4, 1.0)
    assert math.isnan(next(r for r in report.raters if r.handle == "ann").first_slot_share)
    assert overview(store, "helpline").first_by_place == [1.0, 0.0, 0.0]
    set_aside(store, "helpline", ann.id, "a test", actor="lead")
    restore(store, "helpline", ann.id, actor="lead")
    with store.read() as session:
        records = read_snapshot(session, "helpline").judgments
    assert [sum(r.imported for r in records if r.handle == who) for who in ("ann", "bo")] == [30, 0]
    lease = next(r.lease_id for r in records if r.imported)
    task = queue.recall(store, ann.id, lease)
    queue.submit(store, ann.id, lease, by_text(task, worst_first=True), revision=task.revision)
    with store.read() as session:
        assert sum(r.imported for r in read_snapshot(session, "helpline").judgments) == 29
