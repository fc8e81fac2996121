"""From files into the store, through votes, out again; frozen versions; the lead's inbox; the commands."""

from __future__ import annotations

import csv
import json
import random
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store_helpers import MakeProject, by_text, claim, count, item_spec, people

from preference_ui import commands, queue, sampling
from preference_ui.backup import verify
from preference_ui.cli import build_parser
from preference_ui.db import Store, open_store
from preference_ui.errors import DataError, LeaseError, RlhfError, StoreError
from preference_ui.export import demonstrations, export_preferences, read_snapshot
from preference_ui.formats import write_preferences
from preference_ui.importing import import_file
from preference_ui.models import Judgment
from preference_ui.people import create_annotator
from preference_ui.projects import add_items, create_project, get_guideline, get_project, list_projects
from preference_ui.queue import Vote
from preference_ui.ranking import PairOptions
from preference_ui.reviews import decide, decisions, inbox
from preference_ui.settings import Axis, ProjectSettings
from preference_ui.simulate import run_pool
from preference_ui.versions import freeze, list_versions, load_preferences
from rlhf.data.loading import load_demonstrations
from rlhf.data.schema import Message


class Longest:
    """Prefers later response numbers, with some noise; ties now and then."""

    def __init__(self, name: str, noise: float = 0.0) -> None:
        self.name, self.noise = name, noise

    def rank(self, prompt: tuple[Message, ...], responses: Sequence[str], rng: random.Random) -> list[list[int]]:
        worth = [int(text.split(".")[1]) + rng.gauss(0, self.noise) for text in responses]
        return [[i] for i in sorted(range(len(responses)), key=lambda i: -worth[i])]


def _jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def test_native_files_of_every_kind_give_the_same_items(
    store: Store, make_project: MakeProject, tmp_path: Path
) -> None:
    rows = [{"prompt": f"p{i}", "responses": [f"a{i}", f"b{i}\u2028x", 'c, "q"\nline']} for i in range(3)]
    files = [_jsonl(tmp_path / "a.jsonl", rows)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    with (tmp_path / "c.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "response", "run", "step"])
        writer.writeheader()
        writer.writerows(
            {"prompt": r["prompt"], "response": t, "run": "sft", "step": 3} for r in rows for t in r["responses"]
        )
    (tmp_path / "d.json").write_text(json.dumps(rows))
    files += [tmp_path / "b.parquet", tmp_path / "c.csv", tmp_path / "d.json"]
    project = make_project(0)
    for file in files:
        assert import_file(store, project.id, file).num_items == 3
    (ann,) = people(store, "ann")
    tasks = set()
    while (task := queue.claim(store, project.id, ann)) is not None:
        tasks.add((task.prompt[0].content, tuple(sorted(task.responses))))
        queue.submit(store, ann, task.lease_id, by_text(task))
    assert tasks == {(r["prompt"], tuple(sorted(r["responses"]))) for r in rows}


def test_pairs_of_trl_and_hh_become_votes_and_come_back(store: Store, tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "why"},
    ]
    explicit = [
        {
            "prompt": turns,
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "bad"}],
        }
    ]
    implicit = [
        {
            "chosen": [*turns, {"role": "assistant", "content": "good"}],
            "rejected": [*turns, {"role": "assistant", "content": "bad"}],
        }
    ]
    head = "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: why\n\nAssistant: "
    transcripts = [
        {"chosen": head + "good", "rejected": head + "bad"},
        {"chosen": head + "good", "rejected": "\n\nHuman: other\n\nAssistant: x"},
    ]
    results = []
    for name, rows in (("explicit", explicit), ("implicit", implicit), ("hh", transcripts)):
        create_project(store, name)
        report = import_file(store, name, _jsonl(tmp_path / f"{name}.jsonl", rows))
        assert (report.num_items, report.num_rankings) == (1, 1)
        assert len(report.left_out) == (name == "hh")
        again = import_file(store, name, tmp_path / f"{name}.jsonl")
        assert again.num_rankings == 0
        results.append(export_preferences(store, name))
    assert results[0] == results[1] == results[2]
    (row,) = results[0]
    assert [m.content for m in row.prompt] == ["hi", "yes?", "why"]
    assert (row.chosen, row.rejected, row.probability) == ("good", "bad", 1.0)
    for file_format in ("trl", "hh", "jsonl"):
        path = tmp_path / f"out-{file_format}.jsonl"
        write_preferences(results[0], path, file_format)
        create_project(store, f"again-{file_format}")
        if file_format == "jsonl":
            continue
        import_file(store, f"again-{file_format}", path)
        assert export_preferences(store, f"again-{file_format}") == results[0]
    assert verify(store).ok


def test_ranked_siblings_of_conversation_trees_become_rankings(store: Store, tmp_path: Path) -> None:
    def node(text: str, role: str, replies: list[dict], rank: int | None = None) -> dict:
        return {"text": text, "role": role, "replies": replies, "rank": rank}

    deep = node("more?", "prompter", [node("z", "assistant", [], 1), node("y", "assistant", [], 0)])
    root = node(
        "q",
        "prompter",
        [node("b", "assistant", [], 1), node("a", "assistant", [deep], 0), node("c", "assistant", [], 1)],
    )
    project = create_project(store, "trees")
    report = import_file(store, project.id, _jsonl(tmp_path / "t.jsonl", [{"message_tree_id": "1", "prompt": root}]))
    assert (report.num_items, report.num_rankings) == (2, 2)
    pairs = {(r.chosen, r.rejected, r.probability) for r in export_preferences(store, "trees")}
    assert {("a", "b", 1.0), ("a", "c", 1.0), ("y", "z", 1.0)} <= pairs
    assert {frozenset(p[:2]) for p in pairs if p[2] == 0.5} == {frozenset("bc")}
    flat = [
        {"message_id": "1", "parent_id": None, "text": "q", "role": "prompter", "rank": None},
        {"message_id": "2", "parent_id": "1", "text": "b", "role": "assistant", "rank": 1},
        {"message_id": "3", "parent_id": "1", "text": "a", "role": "assistant", "rank": 0},
    ]
    create_project(store, "flat")
    import_file(store, "flat", _jsonl(tmp_path / "f.jsonl", flat))
    assert [(r.chosen, r.rejected) for r in export_preferences(store, "flat")] == [("a", "b")]


@pytest.mark.parametrize(("name", "content", "hint"), [
    ("a.jsonl", '{"prompt": "p", "responses": ["a", "b"]}\n{"prompt": "p"\n', r"a\.jsonl:2"),
    ("a.jsonl", '{"prompt": "p", "responses": ["a"]}\n', r"a\.jsonl:1.*2 to 9"),
    ("a.jsonl", '{"prompt": "p", "responses": ["a", "a"]}\n', r"a\.jsonl:1.*same text"),
    ("a.jsonl", '{"prompt": "p", "responses": ["a", " "]}\n', r"a\.jsonl:1"),
    ("a.jsonl", '{"prompt": "p", "responses": ["a", "b\\u0000"]}\n', r"a\.jsonl:1"),
    ("a.jsonl", '{"responses": ["a", "b"]}\n', "prompt"),
    ("a.jsonl", "[1]\n", r"a\.jsonl:1"),
    ("a.jsonl", "", "no records"),
    ("a.txt", "x", "unknown kind"),
])  # fmt: skip
def test_bad_files_name_the_place(tmp_path: Path, name: str, content: str, hint: str) -> None:
    store = open_store(tmp_path / "votes.sqlite")
    project = create_project(store, "p")
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=hint):
        import_file(store, project.id, tmp_path / name)
    store.close()


def test_freeze_load_rebuild_and_refuse(store: Store, make_project: MakeProject) -> None:
    make_project(12, overlap=2, adaptive_extra=1)
    run_pool(store, "helpline", [Longest("ann", 1.0), Longest("bo", 1.0), Longest("cy", 1.0)])
    live = load_preferences("store:helpline", store)
    version = freeze(store, "helpline")
    assert version.name == "store:helpline@v1"
    assert load_preferences(version.name, store) == live
    assert sum(r.weight for r in live) == pytest.approx(12)
    assert {p.name for p in version.path.iterdir()} == {
        "preferences.jsonl",
        "preferences.parquet",
        "judgments.jsonl",
        "manifest.json",
        "README.md",
    }
    assert json.loads((version.path / "manifest.json").read_text())["sha256"] == version.sha256
    table = pq.read_table(version.path / "preferences.parquet").to_pylist()
    assert [r["chosen"] for r in table] == [r.chosen for r in live]
    raw = (version.path / "judgments.jsonl").read_text()
    assert len(raw.splitlines()) == version.num_judgments and '"ann"' not in raw
    # A frozen vote stays; new votes go to the next version.
    ann = create_annotator(store, "di").id
    with store.read() as session:
        record = read_snapshot(session, "helpline").judgments[0]
    for attempt in (
        lambda: queue.submit(store, record.annotator_id, record.lease_id, Vote([[0], [1], [2]]), record.revision + 1),
        lambda: queue.withdraw(store, record.annotator_id, record.lease_id),
        lambda: queue.recall(store, record.annotator_id, record.lease_id),
    ):
        with pytest.raises(LeaseError, match="frozen"):
            attempt()
    add_items(store, get_project(store, "helpline").id, [item_spec(50)])
    task = claim(store, ann)
    queue.submit(store, ann, task.lease_id, by_text(task))
    second = freeze(store, "helpline")
    assert [v.number for v in list_versions(store, "helpline")] == [1, 2]
    assert load_preferences("store:helpline@v1", store) == live
    assert len(load_preferences(second.name, store)) == len(live) + 3
    # Altered file: not believed. Lost files: built again from the store.
    file = version.path / "preferences.jsonl"
    file.write_bytes(file.read_bytes().replace(b"0.1", b"9.9", 1))
    assert load_preferences("store:helpline@v1", store) == live
    shutil.rmtree(version.path)
    assert load_preferences("store:helpline@v1", store) == live
    assert verify(store).ok
    for bad in ("helpline", "store:", "store:helpline@3", "store:nothing", "store:helpline@v9"):
        with pytest.raises(DataError):
            load_preferences(bad, store)


def test_equal_votes_give_equal_bytes_in_another_store(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        store = open_store(tmp_path / f"{name}.sqlite", rng=random.Random(3))
        project = create_project(store, "p", settings=ProjectSettings(overlap=2, adaptive_extra=1))
        add_items(store, project.id, [item_spec(i) for i in range(8)])
        report = run_pool(store, "p", [Longest("a", 1), Longest("b", 1), Longest("c", 1)], seed=5)
        assert 16 <= report.votes <= 24 and sum(report.per_annotator.values()) == report.votes
        digests.append(freeze(store, "p").sha256)
        store.close()
    assert digests[0] == digests[1]
    spec = f"store:{tmp_path / 'one.sqlite'}#p@v1"
    assert load_preferences(spec) == load_preferences("store:p@v1", tmp_path / "two.sqlite")


def test_edits_strength_and_gold_in_the_export(store: Store, make_project: MakeProject) -> None:
    project = make_project(1, num_responses=2, strength_margins=(0.0, 0.5, 1.0), gold_rate=1.0)
    add_items(store, project.id, [item_spec(9, 2, gold_tiers=((0,), (1,)))])
    (ann,) = people(store, "ann")
    for _ in range(2):
        task = claim(store, ann)
        worst = max(range(2), key=lambda i: task.responses[i])
        vote = Vote(by_text(task).tiers, strength=2, edits={worst: "rewritten"})
        queue.submit(store, ann, task.lease_id, vote)
    rows = export_preferences(store, "helpline")
    assert {(r.chosen, r.rejected, r.margin, r.weight) for r in rows} == {
        ("0.0", "0.1", 1.0, 0.5),
        ("rewritten", "0.1", 0.0, 0.5),
    }
    assert len(export_preferences(store, "helpline", include_edits=False)) == 1
    with store.read() as session:
        (row,) = demonstrations(read_snapshot(session, "helpline"))
    assert row.response == "rewritten"
    assert export_preferences(store, "helpline", PairOptions(reliability={ann: 0.0})) == []


def test_every_rewritten_response_is_a_demonstration_that_sft_reads(
    store: Store, make_project: MakeProject, tmp_path: Path
) -> None:
    """Two of one vote: ids of responses that came together begin alike."""
    make_project(1, num_responses=3)
    (ann,) = people(store, "ann")
    task = claim(store, ann)
    queue.submit(store, ann, task.lease_id, Vote(by_text(task).tiers, edits={0: "better", 1: "better still"}))
    commands.prefs_export(store, "helpline", tmp_path / "sft.jsonl", file_format="sft")
    found = load_demonstrations([tmp_path / "sft.jsonl"])
    assert sorted(row.response for row in found) == ["better", "better still"]


def test_the_inbox_and_a_decision_that_versions_the_guideline(store: Store, make_project: MakeProject) -> None:
    project = make_project(2, overlap=2)
    ann, bo = people(store, "ann", "bo")
    for person, flip in ((ann, False), (bo, True)):
        for index in range(2):
            task = claim(store, person)
            queue.submit(store, person, task.lease_id, by_text(task, worst_first=flip and index == 0))
    (entry,) = inbox(store, "helpline")
    assert entry.agreement == 0 and len(entry.votes) == 2 and len(entry.responses) == 3
    lead = create_annotator(store, "lead", role="reviewer").id
    assert (
        decide(store, entry.item_id, "guideline_unclear", "say more", decided_by=lead, new_guideline="Be fairer.") == 2
    )
    assert inbox(store, "helpline") == []
    assert decisions(store, entry.item_id)[0].guideline_version == 2
    assert get_guideline(store, project.id) == "Be fairer." and get_guideline(store, project.id, 1) == "Be fair."
    add_items(store, project.id, [item_spec(7)])
    assert claim(store, ann).guideline_version == 2
    with pytest.raises(DataError):
        decide(store, entry.item_id, "whatever", "", decided_by=lead)
    assert verify(store).ok


def test_statistics_of_a_project(store: Store, make_project: MakeProject) -> None:
    project = make_project(
        25, overlap=3, axes=(Axis("helpful", 1, 5),), gold_rate=0.3, repeat_rate=0.2, repeat_after_seconds=0
    )
    add_items(store, project.id, [item_spec(100 + i, gold_tiers=((2,), (0, 1))) for i in range(5)])
    crew = [Longest("ann", 0.5), Longest("bo", 0.5), Longest("clicker", 50.0)]
    run_pool(store, "helpline", crew, seed=2)
    report = commands.report_of(store, "helpline")
    by_name = {r.handle: r for r in report.raters}
    assert by_name["clicker"].reliability < 0.5 < min(by_name["ann"].reliability, by_name["bo"].reliability)
    assert by_name["ann"].gold_accuracy.value > by_name["clicker"].gold_accuracy.value
    assert by_name["ann"].self_consistency.value > by_name["clicker"].self_consistency.value
    assert report.pair_agreement.low < report.pair_agreement.value < report.pair_agreement.high
    assert report.kappa["ann", "bo"][0] > 0.5 > report.kappa["ann", "clicker"][0]
    assert 0.5 < report.reward_model_ceiling <= 1 and 0 < report.alpha_pairs.value < 1
    commands.save_stats(store, "helpline")
    text = "\n".join(t.render() for t in commands.prefs_stats(store, "helpline"))
    assert "Krippendorff" in text and "clicker" in text
    weighted = commands.prefs_freeze(store, "helpline", weight_by_reliability=True)
    assert "data.train=store:helpline@v1" in weighted.render()


def test_the_commands_from_file_to_file(tmp_path: Path) -> None:
    place = tmp_path / "votes.sqlite"
    head = "\n\nHuman: q{}\n\nAssistant: "
    rows = [{"chosen": head.format(i) + "a", "rejected": head.format(i) + "b"} for i in range(4)]
    with pytest.raises(StoreError):
        commands.prefs_stats(place, "p")
    table = commands.prefs_import(place, "p", [_jsonl(tmp_path / "in.jsonl", rows)])
    assert table.rows == [(str(tmp_path / "in.jsonl"), "4", "4", "4", "0")]
    assert commands.prefs_import(place, "p", [tmp_path / "in.jsonl"]).rows[0][1:] == ("4", "0", "0", "0")
    for file_format in ("jsonl", "parquet", "trl", "hh", "csv"):
        out = tmp_path / f"out.{file_format}"
        assert commands.prefs_export(place, "p", out, file_format=file_format).rows[0][2] == "4"
        assert out.exists()
    assert commands.prefs_freeze(place, "p").rows[0][0] == "4"
    assert commands.prefs_backup(place, tmp_path / "copy.sqlite").rows[0][0].endswith("copy.sqlite")
    sound = commands.prefs_verify(place)
    assert "sound" in sound.render()
    store = open_store(place)
    with store.engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER keep_judgment_update")
        connection.exec_driver_sql("UPDATE judgment SET all_bad = 1 WHERE revision = 1")
    assert count(store, Judgment) == 4
    with pytest.raises(StoreError, match="not what was recorded"):
        commands.prefs_verify(store)
    store.close()


@pytest.mark.parametrize("row", [{"prompt": "p", "responses": ["alone"]}, {"prompt": "p"}])
def test_an_import_that_fails_leaves_no_empty_project(row: dict, tmp_path: Path) -> None:
    place = tmp_path / "votes.sqlite"
    with pytest.raises(DataError, match=r"in\.jsonl"):
        commands.prefs_import(place, "p", [_jsonl(tmp_path / "in.jsonl", [row])])
    store = open_store(place)
    assert list_projects(store) == []
    store.close()


def test_nothing_is_exported_as_a_file_without_rows(tmp_path: Path) -> None:
    place, out = tmp_path / "votes.sqlite", tmp_path / "out"
    rows = [{"prompt": "p", "responses": ["a", "b"]}]
    assert commands.prefs_import(place, "p", [_jsonl(tmp_path / "in.jsonl", rows)]).rows[0][1:] == ("1", "1", "0", "0")
    for file_format, words in (("jsonl", "no preferences to export yet"), ("sft", "no rewritten responses"),
                               ("trlx", "jsonl, parquet, trl, hh, csv, sft")):  # fmt: skip
        with pytest.raises(DataError, match=words):
            commands.prefs_export(place, "p", out, file_format=file_format)
    assert not out.exists()


def test_the_store_may_be_named_before_or_after_the_action(tmp_path: Path) -> None:
    parse = build_parser().parse_args
    assert parse(["stats", "p", "--store", "x"]).store == parse(["--store", "x", "stats", "p"]).store == "x"
    assert parse(["stats", "p"]).store is None


@pytest.mark.parametrize(("changes", "code"), [({"limit": 0}, 2), ({"run": "runs/none"}, 2)])
def test_sampling_ends_with_the_exit_code_of_what_was_wrong(
    changes: dict, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 2))
    place = tmp_path / "votes.sqlite"
    commands.prefs_import(place, "p", [_jsonl(tmp_path / "in.jsonl", [{"prompt": "p", "responses": ["a", "b"]}])])
    order = {"run": "m", "folder": tmp_path / "drawn", **changes}
    with pytest.raises(
        RlhfError, match="--count 0 must be at least 1" if "limit" in changes else "exit code 2"
    ) as error:
        commands.prefs_sample(place, "p", **order)
    assert error.value.exit_code == code
