"""Freezing beside people who vote, beside others who freeze, and beside other stores in one directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from store_helpers import MakeProject, by_text, claim, item_spec, lease_row, people

from preference_ui import queue, versions
from preference_ui.backup import verify
from preference_ui.db import Store, open_store
from preference_ui.errors import ConfigError, StoreError
from preference_ui.projects import add_items, create_project
from preference_ui.versions import freeze, list_versions, load_preferences, load_version


def _vote(store: Store, annotator: str, *, worst_first: bool = False) -> str:
    task = claim(store, annotator)
    queue.submit(store, annotator, task.lease_id, by_text(task, worst_first=worst_first))
    return task.lease_id


def _while_writing(monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """Let ``act`` happen once, while the next version's files are being written."""
    write = versions._write_files

    def writing(*parts: Any) -> None:
        monkeypatch.setattr(versions, "_write_files", write)
        act()
        write(*parts)

    monkeypatch.setattr(versions, "_write_files", writing)


def test_people_vote_while_a_version_is_written(
    store: Store, make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_project(3)
    (ann,) = people(store, "ann")
    first, second = _vote(store, ann), _vote(store, ann)
    before, late = load_preferences("store:helpline", store), []

    def act() -> None:
        late.append(_vote(store, ann))
        task = queue.recall(store, ann, first)
        queue.submit(store, ann, first, by_text(task, worst_first=True), revision=2)

    _while_writing(monkeypatch, act)
    version = freeze(store, "helpline")
    assert (version.num_judgments, len(before)) == (2, 6)
    assert load_version(store, "helpline", 1) == before, "as the votes were when it was read"
    shutil.rmtree(version.path)
    assert load_version(store, "helpline", 1) == before
    frozen = {lease: lease_row(store, lease).frozen_in is not None for lease in (first, second, *late)}
    assert frozen == {first: False, second: True, late[0]: False}, "a changed answer is not what the version holds"
    assert freeze(store, "helpline").num_judgments == 3
    assert all(lease_row(store, lease).frozen_in is not None for lease in frozen)
    assert verify(store).ok


def test_two_who_freeze_at_once_get_two_versions(
    store: Store, make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_project(2)
    (ann,) = people(store, "ann")
    _vote(store, ann)
    numbers = []

    def act() -> None:
        _vote(store, ann)
        numbers.append(freeze(store, "helpline").number)

    _while_writing(monkeypatch, act)
    assert (freeze(store, "helpline").number, numbers) == (2, [1])
    assert [v.num_judgments for v in list_versions(store, "helpline")] == [2, 2]
    for version in list_versions(store, "helpline"):
        assert json.loads((version.path / "manifest.json").read_text())["sha256"] == version.sha256
        assert sorted(path.name for path in version.path.parent.iterdir()) == ["v1", "v2"], "no parts are left"


def test_stores_that_share_a_directory_keep_their_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = []
    for name in ("one", "two"):
        store = open_store(tmp_path / f"{name}.sqlite", files="shared")
        project = create_project(store, "helpline")
        add_items(store, project.id, [item_spec(4 if name == "one" else 5)])
        _vote(store, *people(store, "ann"))
        found.append((store, freeze(store, "helpline")))
    for store, version in found:
        assert version.path.is_absolute() and (version.path / "preferences.jsonl").exists()
        assert len(load_version(store, "helpline", 1)) == 3
        store.close()
    assert found[0][1].path != found[1][1].path


def test_only_what_a_crash_left_is_replaced(store: Store, make_project: MakeProject) -> None:
    make_project(3)
    (ann,) = people(store, "ann")
    _vote(store, ann)
    first = freeze(store, "helpline")
    after = first.path.with_name("v2")
    after.mkdir()
    (after / "manifest.json").write_text(json.dumps({"head_seq": first.head_seq, "head_hash": "f" * 64}))
    _vote(store, ann)
    with pytest.raises(StoreError, match="move it away"):
        freeze(store, "helpline")
    assert (after / "manifest.json").exists() and len(list_versions(store, "helpline")) == 1
    shutil.rmtree(after)
    # Files of a version that was never committed: they name an event of this chain.
    shutil.copytree(first.path, after)
    assert freeze(store, "helpline").num_judgments == 2
    assert json.loads((after / "manifest.json").read_text())["name"] == "helpline@v2"


@pytest.mark.parametrize("name", [".", "..", "a\\b", "a/b"])
def test_no_project_is_named_like_a_way_out_of_its_folder(store: Store, name: str) -> None:
    with pytest.raises(ConfigError, match="project name"):
        create_project(store, name)
