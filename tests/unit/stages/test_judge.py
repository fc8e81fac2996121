"""Judges of an evaluation that need no training rank: the same sources as in PPO, and never a dropped answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.config import EvaluateConfig, build_config
from rlhf.data.schema import Message, PromptRow
from rlhf.errors import ConfigError, DataError
from rlhf.stages.evaluate import judged_in_both_orders, make_judge
from rlhf.stages.plan import plan_stage
from tests.support.reward_server import reward_server

PROMPTS = [PromptRow(str(n), (Message("user", f"Question {n}?"),)) for n in range(3)]


def config(judge: dict[str, Any]) -> EvaluateConfig:
    tree = {"run_dir": "x", "model": {"name": "builtin:helpline_base"}, "baseline": "builtin:helpline_base"}
    return build_config(EvaluateConfig, {**tree, "prompts": "p.jsonl", "judge": judge}, source="test")


def test_functions_and_servers_judge_alike() -> None:
    with reward_server() as server:
        by_server = make_judge(config({"kind": "http", "url": server.url}), "x")
        by_function = make_judge(config({"kind": "function", "path": "tests.support.scores:count_e"}), "x")
        for judge in (by_server, by_function):
            ours, theirs = judged_in_both_orders(judge, PROMPTS, ["e", "ee", ""], ["", "e", "eee"])
            assert ours.tolist() == [1, 2, 0] and theirs.tolist() == [0, 1, 3]


def test_a_missing_score_ends_an_evaluation_and_drops_are_refused() -> None:
    wise = {"kind": "function", "path": "tests.support.scores:wise"}
    with pytest.raises(DataError, match="for response 1"):
        make_judge(config(wise), "x")(PROMPTS[:2], ["e", "nan"])
    with pytest.raises(ConfigError, match=r"judge\.on_error=drop would leave answers out"):
        config({**wise, "on_error": "drop"})


def test_weights_count() -> None:
    """The lower score wins below 0; nothing would win at 0."""
    count = {"kind": "function", "path": "tests.support.scores:count_e"}
    assert list(make_judge(config({**count, "weight": -0.5}), "x")(PROMPTS[:2], ["ee", "e"])) == [-1.0, -0.5]
    with pytest.raises(ConfigError, match=r"judge\.weight=0 makes every answer a tie"):
        config({**count, "weight": 0.0})


def test_plans_name_their_sources(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    for judge, name in (
        ({"kind": "http", "url": "https://rewards.example.org/s"}, "https://rewards.example.org/s"),
        ({"kind": "function", "path": "tests.support.scores:wise"}, "tests.support.scores:wise"),
    ):
        planned = config(judge).model_copy(update={"prompts": str(tmp_path / "p.jsonl")})
        assert ("judge", name) in plan_stage(planned)


def test_a_judge_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="cannot import"):
        make_judge(config({"kind": "function", "path": "no.such:function"}), "x")
