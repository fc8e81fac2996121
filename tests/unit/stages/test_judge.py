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


def test_a_missing_score_ends_an_evaluation_even_where_drops_are_allowed() -> None:
    judge = make_judge(config({"kind": "function", "path": "tests.support.scores:wise", "on_error": "drop"}), "x")
    with pytest.raises(DataError, match="for response 1"):
        judge(PROMPTS[:2], ["e", "nan"])


def test_plans_name_their_sources(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    for judge, name in (
        ({"kind": "http", "url": "https://rewards.example.org/s"}, "https://rewards.example.org/s"),
        ({"kind": "function", "path": "a.b:c"}, "a.b:c"),
    ):
        planned = config(judge).model_copy(update={"prompts": str(tmp_path / "p.jsonl")})
        assert ("judge", name) in plan_stage(planned)


def test_a_judge_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="cannot import"):
        make_judge(config({"kind": "function", "path": "no.such:function"}), "x")
