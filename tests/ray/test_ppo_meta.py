"""Verifiable rewards: every response of a run is scored against the reference of its own row."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from rlhf.config import PpoConfig
from rlhf.engine.checkpoint.manifest import read_manifest
from rlhf.errors import CheckpointError
from tests.support.ppo import PROMPTS, Finished, run, tiny_config
from tests.support.resumed import cut_after
from tests.support.runtime import ActorPool

ANSWERS = {text: number + 10 for number, text in enumerate(PROMPTS)}


def settings(folder: Path) -> dict[str, Any]:
    path = folder / "rows.jsonl"
    rows = [{"id": f"row-{n}", "question": text, "answer": n} for text, n in ANSWERS.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "prompts": str(path),
        "scores": [{"kind": "function", "path": "tests.support.scores:told"}],
        "rollout.overlap": 1,
        "loss.importance_cap": 2.0,
        "num_steps": 3,
        "sample_every_steps": 1,
        "batch.epochs": 1,
        "checkpoint.every": 2,
    }


@pytest.fixture
def scored(actor_pool: ActorPool, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Finished:
    """Three steps, drawn ahead, and gone on from a checkpoint after the second."""
    monkeypatch.setenv("TOLD_META", str(tmp_path / "told.jsonl"))
    config = tiny_config(tiny_base, tmp_path / "run", **settings(tmp_path))
    cut_after(config, actor_pool, 2)
    before, began = commit_seconds(config), time.perf_counter()
    done = run(config, actor_pool)
    told = done.summary["seconds"] - before
    assert 0.8 * (time.perf_counter() - began) < told <= time.perf_counter() - began, (
        "from the start on, not from step 0"
    )
    return done


def commit_seconds(config: PpoConfig) -> float:
    """Seconds that the newest commit of a run has counted."""
    newest = max((Path(config.run_dir) / "checkpoints").glob("step-*"))
    return float(read_manifest(newest).state["seconds"])


def test_every_response_is_scored_against_its_own_row(
    scored: Finished, actor_pool: ActorPool, tiny_base: Path, tmp_path: Path
) -> None:
    told = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text("utf-8").splitlines()]
    assert len(told) == 3 * 16, "four prompts with four responses each, in three steps"
    for row in told:
        number = ANSWERS[row["prompt"]]
        assert row["meta"] == {"id": f"row-{number}", "answer": number}
    assert len({row["prompt"] for row in told}) == len(PROMPTS)
    kept = [json.loads(line) for line in (scored.run_dir / "rollouts.jsonl").read_text("utf-8").splitlines()]
    assert {row["step"] for row in kept} == {0, 1, 2}
    for row in kept:
        assert row["score"] == ANSWERS[row["prompt"]] and row["key"].split("/")[1] == f"row-{ANSWERS[row['prompt']]:g}"
        assert {"prompt": row["prompt"], "response": row["response"]}.items() <= told_of(told, row).items()
    for step, metrics in enumerate(scored.rows):
        part = told[16 * step : 16 * step + 16]
        assert metrics["score_mean"] == pytest.approx(sum(row["meta"]["answer"] for row in part) / 16)


def told_of(told: list[dict[str, Any]], row: dict[str, Any]) -> dict[str, Any]:
    """What the function was told about a kept response of the row's step."""
    part = told[16 * row["step"] : 16 * row["step"] + 16]
    return next(one for one in part if (one["prompt"], one["response"]) == (row["prompt"], row["response"]))


def test_other_references_are_another_run(actor_pool: ActorPool, tiny_base: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_base, tmp_path / "run", **settings(tmp_path))
    cut_after(config, actor_pool, 2)
    path = Path(str(config.prompts))
    path.write_text(path.read_text("utf-8").replace('"answer": 10', '"answer": 99'), encoding="utf-8")
    with pytest.raises(CheckpointError, match="what the prompts' rows tell the score functions"):
        run(config, actor_pool)
