"""What the commands of the store name to go on with finds the store that they have used, and trains the right model."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from preference_ui import commands, hints, sampling
from preference_ui.db import Store, make_engine
from preference_ui.ids import utc_now


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with one ranked pair, away from where commands look; no variable names it."""
    for variable in ("RLHF_STORE", "RLHF_STORE_DEFAULT"):
        monkeypatch.delenv(variable, raising=False)
    head = "\n\nHuman: q\n\nAssistant: "
    rows = _jsonl(tmp_path / "in.jsonl", [{"chosen": f"{head}a", "rejected": f"{head}b"}])
    commands.prefs_import(tmp_path / "my votes.sqlite", "p", [rows])
    return tmp_path / "my votes.sqlite"


def test_a_frozen_version_is_trained_from_the_sft_run_and_found_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = "rlhf reward --config configs/reward/tiny_cpu.yaml model.name=runs/sft data.train=store:p@v"
    assert f"RLHF_STORE='{place}' {train}1" in commands.prefs_freeze(place, "p").render()
    monkeypatch.setenv("RLHF_STORE", str(place))
    for number, named in enumerate((place, None), start=2):
        told = commands.prefs_freeze(named, "p").render()
        assert f": {train}{number}" in told and "RLHF_STORE=" not in told, "every command finds this one"


def test_drawn_answers_are_ranked_in_their_store_and_imported_once(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def draw(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        (tmp_path / "drawn").mkdir()
        _jsonl(tmp_path / "drawn/candidates.jsonl", [{"prompt": "q", "responses": ["c", "d"]}])
        return subprocess.CompletedProcess([], 0)

    monkeypatch.setattr(sampling.subprocess, "run", draw)
    told = commands.prefs_sample(place, "p", run="m", folder=tmp_path / "drawn").render()
    assert f"rlhf annotate --project p --store '{place}'" in told
    assert "--no-next" in asked[0], "the stage's own next step, to import, has been done"


def test_figures_without_votes_are_dashes(tmp_path: Path) -> None:
    rows = _jsonl(tmp_path / "in.jsonl", [{"prompt": "q", "responses": ["a", "b"]}])
    commands.prefs_import(tmp_path / "empty.sqlite", "p", [rows])
    figures = dict(commands.prefs_stats(tmp_path / "empty.sqlite", "p")[0].rows)
    assert figures.pop("votes") == figures.pop("items with votes") == "0"
    assert set(figures.values()) == {"-"}, figures


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    engine = make_engine("postgresql://ada:secret@db.example.org/votes")
    store = Store(engine, tmp_path, utc_now, random.Random(0))
    told = hints.training_on(store, "store:p@v1") + hints.ranking_page(store, "p")
    assert "secret" not in told and told.count("db.example.org/votes") == 2
