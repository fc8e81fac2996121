"""Every shipped YAML loads, and says what it needs and what to expect."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rlhf.config import STAGES, build_config, dump_yaml, load_config
from rlhf.stages.plan import plan_stage
from tests.support.conversations import demonstrations, preferences, write_rows

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs").glob("**/*.yaml"))
STAGE_FILES = [path for path in FILES if (yaml.safe_load(path.read_text("utf-8")) or {}).get("stage") in STAGES]


def test_there_are_configs() -> None:
    assert STAGE_FILES


def test_every_file_is_a_stage_or_a_pipeline() -> None:
    """Pipelines are loaded and planned in tests/unit/cluster/test_pipeline.py."""
    others = {path for path in FILES if path not in STAGE_FILES}
    assert others == set((ROOT / "configs/pipelines").glob("*.yaml"))


@pytest.mark.parametrize("path", STAGE_FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_config_loads_and_survives_a_round_trip(path: Path) -> None:
    stage = yaml.safe_load(path.read_text("utf-8"))["stage"]
    config = load_config(stage, path)
    again = build_config(STAGES[stage], yaml.safe_load(dump_yaml(config)), source="dump")
    assert again == config


@pytest.mark.parametrize("path", STAGE_FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_config_opens_with_its_card(path: Path) -> None:
    head = "\n".join(line for line in path.read_text("utf-8").splitlines()[:8] if line.startswith("#")).lower()
    for word in ("hardware", "launch", "minutes", "metric"):
        assert word in head, f"{path.name}: the opening comment does not tell its {word}"


@pytest.mark.parametrize("path", STAGE_FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_config_plans(path: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    """With a tiny model and a few rows in place of what a file names."""
    stage = yaml.safe_load(path.read_text("utf-8"))["stage"]
    rows = write_rows(tmp_path / "rows.jsonl", demonstrations(40))
    pairs = write_rows(tmp_path / "pairs.jsonl", preferences(40))
    own = {
        "sft": [f"data.train={rows}", "data.evaluation=null", "data.eval_fraction=0.2"],
        "reward": [
            f"data.train={pairs}",
            "data.evaluation=null",
            "data.eval_fraction=0.2",
            "annotator_weights=false",
            "normalize_on=null",
        ],
        "ppo": [f"prompts={rows}", "scores=[{kind: function, path: 'tests.support.scores:count_e'}]"],
        "dpo": [f"data.train={pairs}", "data.evaluation=null", "data.eval_fraction=0.2", "annotator_weights=false"],
        "sample": [f"prompts={rows}"],
        "evaluate": [
            f"prompts={rows}",
            f"baseline={tiny_model_dir}",
            "judge={kind: function, path: 'tests.support.scores:count_e'}",
        ],
    }
    config = load_config(stage, path, [f"model.name={tiny_model_dir}", *own[stage], f"run_dir={tmp_path / 'run'}"])
    plan = dict(plan_stage(config))
    assert plan and all(plan.values())
    assert not (tmp_path / "run").exists(), "a plan starts nothing and writes nothing"
