"""Data mixed from several sources, in the stages that train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.plan import _count_rows
from rlhf.config import EvaluateConfig, PpoConfig, RewardConfig, SampleConfig, SftConfig, build_config
from rlhf.config.sources import files_of
from rlhf.errors import ConfigError, DataError
from rlhf.stages import sft
from rlhf.stages.next_commands import next_commands
from rlhf.stages.pairs import open_model, read_pairs
from rlhf.stages.plan import plan_stage
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


def test_a_weight_that_leaves_no_row_is_named(demonstrations: list[dict[str, Any]], tmp_path: Path) -> None:
    demonstrations[1] |= {"weight": 1e-6, "limit": 4}
    found = config(SftConfig, tmp_path, data={"train": demonstrations, "eval_fraction": 0})
    said = r"\.1\.weight=1e-06 leaves none of the 4 rows of \S+two\.jsonl: raise it"
    with pytest.raises(DataError, match="data.train" + said):
        sft.read_rows(found, sft.open_model(found)[1], tmp_path)
    with pytest.raises(DataError, match="prompts" + said):
        read_prompts(config(PpoConfig, tmp_path, prompts=demonstrations, scores=[SCORE]), None)
    alone = demonstrations[1:]
    with pytest.raises(DataError, match=r"prompts\.0\.weight=1e-06 leaves none"):
        plan_stage(config(PpoConfig, tmp_path, prompts=alone, scores=[SCORE]))


def test_each_source_s_rows_are_told(demonstrations: list[dict[str, Any]], tmp_path: Path) -> None:
    demonstrations[1] |= {"limit": 4}
    found = config(SftConfig, tmp_path, data={"train": demonstrations, "eval_fraction": 0})
    assert sft.read_rows(found, sft.open_model(found)[1], tmp_path).counts["sources"] == [6, 4]
    assert "sources [6, 4]" in dict(plan_stage(found))["rows"]
    scores = [{"kind": "function", "path": "tests.support.scores:count_e"}]
    assert dict(plan_stage(config(PpoConfig, tmp_path, prompts=demonstrations, scores=scores)))["prompts"] == (
        "10 = 6 + 4 of its sources"
    )
    plain = config(SftConfig, tmp_path, data={"train": demonstrations[0]["files"], "eval_fraction": 0})
    assert "sources" not in dict(plan_stage(plain))["rows"]


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_what_is_odd_between_sources_is_told_under_the_mixture_s_ids(stage: str, tmp_path: Path) -> None:
    opposite = [{"chosen": "y", "rejected": "n"}, {"chosen": "n", "rejected": "y"}]
    answers = [{"completion": "yes"}] * 2 if stage == "sft" else opposite
    sources = [
        {
            "files": write(
                tmp_path / f"{name}.jsonl", *({"id": f"{name} {n}", "prompt": f"{n}?", **answer} for n in "ab")
            )
        }
        for name, answer in zip(("one", "two"), answers, strict=True)
    ]
    data = {"train": sources, "eval_fraction": 0}
    if stage == "sft":
        found = config(SftConfig, tmp_path, data=data)
        sft.read_rows(found, sft.open_model(found)[1], tmp_path)
    else:
        found = config(RewardConfig, tmp_path, data=data)
        read_pairs(found, open_model(found)[1], tmp_path)
    told = (tmp_path / "data_quality.txt").read_text()
    assert ("duplicate_rows" if stage == "sft" else "conflicting_pairs") in told
    assert "1/two a" in told and "1/two b" in told and not list(tmp_path.glob("data_quality_*"))


def test_counting_and_next_commands(demonstrations: list[dict[str, Any]], tmp_path: Path) -> None:
    found = config(SftConfig, tmp_path, data={"train": demonstrations, "eval_fraction": 0})
    assert _count_rows(found) == 2 * 3 + 5
    (_, (sample, _)) = next_commands("sft", found)
    assert '"' + demonstrations[0]["files"] + '"' in sample and demonstrations[1]["files"][0] in sample
    assert _count_rows(config(SftConfig, tmp_path, data={"train": [{"files": "store:x"}]})) is None


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (
            {"train": ["a.jsonl", "store:x"]},
            r"data\.train lists a store: .*data\.train=\[{files: a\.jsonl}, {files: store:x}\]",
        ),
        ({"preferences": ["store:x", "store:y@v2"]}, r"data\.train=\[{files: store:x}, {files: store:y@v2}\]"),
        ({"train": [{"files": "a"}, {"files": ["b", "store:x"]}]}, r"data\.train\.1\.files lists a store:"),
        ({"train": "a", "evaluation": ["b", "store:x"]}, r"data\.evaluation lists a store: among files: name it alone"),
    ],
)
def test_rankings_of_the_store_are_a_source_of_their_own(data: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        config(RewardConfig, tmp_path, data=data)
    config(RewardConfig, tmp_path, data={"train": [{"files": "a"}, {"files": "store:x"}], "evaluation": "store:y"})


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"train": [{"files": "a"}], "format": "hh"}, r"data\.format=hh has no meaning.*data\.train\.0\.format="),
        ({"train": [{"files": "a"}], "format": "hh", "evaluation": "store:y"}, r"data\.format=hh has no meaning"),
        (
            {"train": "store:x", "format": "hh"},
            r"data\.format=hh has no meaning beside data\.train=store:x: leave it out",
        ),
        (
            {"train": [{"files": "a"}, {"files": "store:x", "format": "hh"}]},
            r"data\.train\.1\.format=hh has no meaning beside files=store:x: leave it out",
        ),
    ],
)
def test_a_format_that_no_file_would_be_read_in(data: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        config(RewardConfig, tmp_path, data=data)
    for train in ([{"files": "a"}], "store:x", "a"):
        config(RewardConfig, tmp_path, data={"train": train, "format": "hh", "evaluation": "b"})


@pytest.mark.parametrize(
    ("cls", "key", "tree"),
    [
        (SampleConfig, "prompts", {}),
        (EvaluateConfig, "prompts", {"baseline": "b", "judge": SCORE}),
        (SftConfig, "data.evaluation", {"data": {"train": "a"}}),
        (PpoConfig, "ptx.train", {"prompts": "a", "scores": [SCORE], "ptx": {}}),
    ],
)
def test_where_files_are_wanted_a_mixture_is_refused_in_one_line(
    cls: Any, key: str, tree: dict[str, Any], tmp_path: Path
) -> None:
    *section, name = key.split(".")
    for given in ([{"files": "a"}], ["a", "b"]):
        within = tree[section[0]] | {name: given} if section else given
        whole = tree | {(section or [name])[0]: within}
        if given == ["a", "b"]:
            config(cls, tmp_path, **whole)
            continue
        with pytest.raises(ConfigError) as error:
            config(cls, tmp_path, **whole)
        said = "is a list of sources, which only data.train and the prompts of ppo can be: name files"
        assert "1 problem(s)" in str(error.value) and f"- {key}: {said}" in str(error.value)


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
