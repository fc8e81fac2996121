"""Score functions and servers that are told about each response's own row."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rlhf.config import EvaluateConfig, FunctionSource, HttpSource, build_config
from rlhf.data.schema import Message, PromptRow
from rlhf.errors import ConfigError
from rlhf.stages.evaluate import judged_in_both_orders, make_judge
from rlhf.stages.scoring_function import FunctionScores
from rlhf.stages.scoring_http import HttpScores
from tests.support.reward_server import reward_server

PAGE = Path(__file__).parents[2] / "docs" / "rewards.md"
ROWS = [{"id": "a", "answer": 4, "tests": ["é", None]}, {"id": "b", "answer": 5}, {"id": "c", "answer": 6.5}]
TEXTS = ["e", "ee", ""]


def scores(name: str, **settings: Any) -> FunctionScores:
    return FunctionScores(FunctionSource(path=f"tests.support.scores:{name}", timeout_seconds=5, **settings))


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("settings", [{}, {"rows_per_call": 2}])
def test_each_response_comes_with_its_own_row(isolate: bool, settings: dict[str, Any]) -> None:
    source = scores("told", isolate=isolate, **settings)
    assert source.reads_meta
    for _ in range(2):  # it takes the answers out of what it is handed: that must be its own copy
        assert source.score(TEXTS, TEXTS, ROWS) == [4.0, 5.0, 6.5]
    source.close()


@pytest.mark.parametrize("isolate", [True, False])
def test_responses_that_are_scored_singly_keep_their_rows(isolate: bool) -> None:
    source = scores("told_alone", isolate=isolate, on_error="drop")
    assert source.score(TEXTS, TEXTS, ROWS) == [4.0, 5.0, 6.5]
    source.close()


@pytest.mark.parametrize("isolate", [True, False])
def test_two_parameters_are_enough(isolate: bool) -> None:
    for name, expected in (("count_e", [1.0, 2.0, 0.0]), ("older", [2.0, 2.0, 2.0])):
        source = scores(name, isolate=isolate)
        assert not source.reads_meta and source.score(TEXTS, TEXTS, ROWS) == expected
        source.close()


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("name", ["needs_more", "needs_one"])
def test_what_fits_neither_way_is_refused_at_the_start(name: str, isolate: bool) -> None:
    with pytest.raises(ConfigError, match=rf"scores:{name}.*fit neither \(prompts, responses\) nor"):
        scores(name, isolate=isolate)


def test_a_server_is_told_where_the_config_says_so() -> None:
    with reward_server() as server:
        quiet = HttpScores(HttpSource(url=server.url))
        assert not quiet.reads_meta and quiet.score(TEXTS, TEXTS, ROWS) == [1.0, 2.0, 0.0]
        assert set(server.seen[-1][1]) == {"prompts", "responses"}
        telling = HttpScores(HttpSource(url=server.url, send_meta=True, rows_per_request=2))
        assert telling.reads_meta and telling.score(TEXTS, TEXTS, ROWS) == [1.0, 2.0, 0.0]
        assert [body["meta"] for _, body in server.seen[-2:]] == [ROWS[:2], ROWS[2:]]


@pytest.mark.parametrize("kind", ["function", "http"])
def test_a_judge_knows_the_row_of_every_answer(kind: str) -> None:
    prompts = [PromptRow(str(n), (Message("user", f"{n}?"),), {"answer": n}) for n in range(3)]
    with reward_server() as server:
        judge: dict[str, Any] = {"kind": "http", "url": server.url, "send_meta": True}
        if kind == "function":
            judge = {"kind": "function", "path": "tests.support.scores:told"}
        tree = {"run_dir": "x", "model": {"name": "m"}, "baseline": "m", "prompts": "p.jsonl", "judge": judge}
        config = build_config(EvaluateConfig, tree, source="test")
        ours, theirs = judged_in_both_orders(make_judge(config, "x"), prompts, TEXTS, TEXTS)
        if kind == "function":
            assert ours.tolist() == theirs.tolist() == [0.0, 1.0, 2.0]
        else:
            wanted = [{"id": str(n), "answer": n} for n in range(3)]
            assert [body["meta"] for _, body in server.seen] == [wanted * 2, wanted * 2]


def page_function() -> ModuleType:
    code = PAGE.read_text(encoding="utf-8").partition("runs this function -->\n```python\n")[2].partition("```")[0]
    module = ModuleType("exact_answers")
    exec(code, module.__dict__)
    return module


def test_the_math_reward_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "exact_answers", page_function())
    source = FunctionScores(FunctionSource(path="exact_answers:score", isolate=False))
    said = ["So it is 1,234.", "#### 72", "It is 7", "no idea", "-3.50", "12 apples, 13 pears"]
    answers = ["a\n#### 1234", "48/2 = 24\n48+24 = 72\n#### 72", "#### 8", "#### 1", "-3.5", "12"]
    meta = [{"id": str(n), "answer": answer} for n, answer in enumerate(answers)]
    assert source.score(said, said, meta) == [1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
