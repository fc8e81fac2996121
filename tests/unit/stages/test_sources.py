"""Data mixed from several sources, in the stages that train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.plan import _count_rows
from rlhf.config import PpoConfig, RewardConfig, SftConfig, build_config
from rlhf.config.sources import files_of
from rlhf.errors import ConfigError, DataError
from rlhf.stages import sft
from rlhf.stages.next_commands import next_commands
from rlhf.stages.pairs import open_model, read_pairs
from rlhf.stages.prompts import read_prompts

MODEL = {"name": "builtin:helpline_base"}
SCORE = {"kind": "function", "path": "a.b:c"}


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def config(cls: Any, tmp_path: Path, **more: Any) -> Any:
    return build_config(cls, {"run_dir": str(tmp_path / "run"), "model": MODEL, **more}, source="test")


@pytest.fixture
def demonstrations(tmp_path: Path) -> list[dict[str, Any]]:
    """Two sources in two formats, each numbered from 0, with a bad row in the second."""
    one = [{"id": n, "question": f"q {n}", "answer": "a"} for n in range(4)]
    two = [{"id": n, "instruction": f"i {n}", "output": "o"} for n in range(4)]
    return [
        {"files": write(tmp_path / "one.jsonl", *one), "weight": 2, "limit": 3},
        {"files": [write(tmp_path / "two.jsonl", *two, {"id": 9, "instruction": 5})], "format": "alpaca"},
    ]


def test_demonstrations_of_two_formats(demonstrations: list[dict[str, Any]], tmp_path: Path) -> None:
    data = {"train": demonstrations, "on_bad_row": "drop", "eval_fraction": 0}
    found = config(SftConfig, tmp_path, data=data)
    rows = sft.read_rows(found, sft.open_model(found)[1], tmp_path)
    assert rows.counts["train"] == 2 * 3 + 4
    assert (
        not (tmp_path / "dropped_0.jsonl").read_text() and "instruction" in (tmp_path / "dropped_1.jsonl").read_text()
    )
    found = config(SftConfig, tmp_path, data=data | {"on_bad_row": "refuse"})
    with pytest.raises(DataError, match=r"(?s)two\.jsonl:5: field 'instruction'.*data\.on_bad_row=drop"):
        sft.read_rows(found, sft.open_model(found)[1], tmp_path)


def test_a_message_names_the_source_s_own_key(tmp_path: Path) -> None:
    files = write(tmp_path / "odd.jsonl", {"query": "x", "reply": "y"})
    found = config(PpoConfig, tmp_path, prompts=[{"files": files}], scores=[SCORE])
    with pytest.raises(DataError, match=r"or name a format with prompts\.0\.format="):
        read_prompts(found, tmp_path)


def test_prompts_of_two_sources_have_ids_and_columns_of_their_own(
    demonstrations: list[dict[str, Any]], tmp_path: Path
) -> None:
    found = config(PpoConfig, tmp_path, prompts=demonstrations, scores=[SCORE], on_bad_row="drop")
    rows = read_prompts(found, tmp_path)
    assert [row.id for row in rows] == [
        *[f"0/{n}" for n in range(3)], *[f"0/{n}#2" for n in range(3)], *[f"1/{n}" for n in range(4)]
    ]  # fmt: skip
    assert [row.meta for row in rows] == [{"answer": "a"}] * 6 + [{"output": "o"}] * 4
    assert files_of(found.prompts) == (demonstrations[0]["files"], *demonstrations[1]["files"])


def test_preferences(tmp_path: Path) -> None:
    pairs = [[{"prompt": f"{k} {n}", "chosen": "y", "rejected": "n"} for n in range(40)] for k in "ab"]
    sources = [{"files": write(tmp_path / f"{k}.jsonl", *rows)} for k, rows in enumerate(pairs)]
    sources[1] |= {"weight": 0.5}
    data = {"train": sources, "eval_fraction": 0}
    found = config(RewardConfig, tmp_path, data=data)
    rows = read_pairs(found, open_model(found)[1], tmp_path)
    assert 50 < rows.counts["train"] < 70
    sources[1] |= {"weight": 2}
    with pytest.raises(ConfigError, match=r"data\.train\.1\.weight=2 changes nothing with weight_by_prompt=true"):
        config(RewardConfig, tmp_path, data=data)
    found = config(RewardConfig, tmp_path, data=data, weight_by_prompt=False)
    assert read_pairs(found, open_model(found)[1], tmp_path).counts["train"] == 40 + 80


def test_counting_and_next_commands(demonstrations: list[dict[str, Any]], tmp_path: Path) -> None:
    found = config(SftConfig, tmp_path, data={"train": demonstrations, "eval_fraction": 0})
    assert _count_rows(found) == 2 * 3 + 5
    (_, (sample, _)) = next_commands("sft", found)
    assert '"' + demonstrations[0]["files"] + '"' in sample and demonstrations[1]["files"][0] in sample
    assert _count_rows(config(SftConfig, tmp_path, data={"train": [{"files": "store:x"}]})) is None


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (
            {"data": {"train": [{"files": "a.jsonl"}], "limit": 3}},
            r"data\.limit=3 has no meaning.*data\.train\.0\.limit=",
        ),
        ({"data": {"train": [{"files": "a.jsonl", "wight": 3}]}}, r"'data\.train\.0\.wight'; did you mean"),
        ({"data": {"train": [{"files": "a.jsonl", "weight": 0}]}}, r"data\.train\.0\.weight: .*greater than 0"),
        ({"data": {"train": ["a.jsonl", {"files": "b.jsonl"}]}}, r"data\.train\.0: Input should be an object"),
        ({"data": {"train": []}}, r"data\.train: .*at least 1 item"),
    ],
)
def test_what_cannot_be(more: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        config(SftConfig, tmp_path, **more)
    if "limit" in more["data"]:
        with pytest.raises(ConfigError, match=r"prompt_format=alpaca has no meaning.*prompts\.0\.format="):
            config(PpoConfig, tmp_path, prompts=[{"files": "a"}], prompt_format="alpaca", scores=[SCORE])
