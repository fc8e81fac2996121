"""Rows that were learned prove nothing: a held-out file and the training data share no prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.config import STAGES, build_config
from rlhf.config.base import Section
from rlhf.errors import DataError
from rlhf.stages import pairs, sft

MODEL = "builtin:helpline_base"


def write(path: Path, prompts: list[str], *, as_turns: bool = False) -> str:
    rows = []
    for number, text in enumerate(prompts):
        asked: Any = [{"role": "user", "content": text}] if as_turns else text
        rows.append({"id": f"{path.stem}-{number}", "prompt": asked})
    both = {"completion": "fine", "chosen": "fine", "rejected": "no"}
    lines = [json.dumps(row | {k: v for k, v in both.items() if (k == "completion") == ("sft" in path.stem)}) for row in
             rows]  # fmt: skip
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def read(stage: str, tmp_path: Path, train: list[str], held_out: list[str], **data: Any) -> Any:
    """The stage's rows and its counts."""
    files = {
        "train": write(tmp_path / f"{stage}_train.jsonl", train),
        "evaluation": write(tmp_path / f"{stage}_held_out.jsonl", held_out, as_turns=stage != "sft"),
    }
    cls: type[Section] = STAGES[stage]
    tree = {"run_dir": str(tmp_path / "run"), "model": {"name": MODEL}, "data": files | data}
    config = build_config(cls, tree, source="test")
    if stage == "sft":
        return sft.read_rows(config, sft.open_model(config)[1], tmp_path)
    return pairs.read_pairs(config, pairs.open_model(config)[1], tmp_path)


SHARED = (["a", "b", "c", "b"], ["d", "b", "c"])


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_held_out_prompts_in_the_training_data_are_refused_with_their_rows(stage: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read(stage, tmp_path, *SHARED)
    text = str(error.value)
    assert "3 of 4 rows of data.train have a prompt that is in data.evaluation, too" in text
    assert all(f"{stage}_train-{number}" in text for number in (1, 2, 3)) and "data.on_overlap=drop" in text


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_they_are_left_out_of_training_and_listed_where_asked(stage: str, tmp_path: Path) -> None:
    rows = read(stage, tmp_path, *SHARED, on_overlap="drop")
    assert (rows.counts["train"], rows.counts["evaluation"], rows.counts["overlap"]) == (1, 3, 3)
    listed = [json.loads(line) for line in (tmp_path / "dropped_overlap.jsonl").read_text("utf-8").splitlines()]
    assert [row["id"] for row in listed] == [f"{stage}_train-{number}" for number in (1, 2, 3)]
    with pytest.raises(DataError, match="leaves nothing to train on"):
        read(stage, tmp_path, ["b"], ["b"], on_overlap="drop")


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_files_that_share_no_prompt_are_taken_as_they_are(stage: str, tmp_path: Path) -> None:
    rows = read(stage, tmp_path, ["a", "b"], ["c"])
    assert (rows.counts["train"], rows.counts["evaluation"], rows.counts["overlap"]) == (2, 1, 0)
    assert not (tmp_path / "dropped_overlap.jsonl").exists()
