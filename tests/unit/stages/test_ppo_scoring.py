"""Sources of scores add up, and no score is ever made up."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.config import FunctionSource, PpoConfig, RewardModelSource, build_config
from rlhf.config.stages import ScoreConfig
from rlhf.data.schema import Message
from rlhf.errors import ConfigError, DataError
from rlhf.stages.ppo_run import prompt_rows_of
from rlhf.stages.scoring import Scorer, prompt_text
from rlhf.stages.scoring_function import load_function

LENGTH = FunctionSource(path="tests.support.scores:count_e", weight=2.0, isolate=False)
MODEL = RewardModelSource(run="runs/reward", weight=-0.5)


def test_sources_add_up_by_weight() -> None:
    scorer = Scorer((LENGTH, MODEL), ScoreConfig())
    model_scores = torch.tensor([[99.0, 1.0], [99.0, -4.0]])  # the function's column is not read
    found = scorer.total(["p", "p"], ["tree", "x"], model_scores)
    assert found.scores.tolist() == [2 * 2 - 0.5, 0 + 2.0] and found.scored.all()
    assert scorer.errors == {}


def test_a_model_s_missing_score_is_refused() -> None:
    scorer = Scorer((MODEL,), ScoreConfig())
    with pytest.raises(DataError, match="runs/reward: returned a non-finite score"):
        scorer.total(["p"], ["r"], torch.tensor([[math.nan]]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_model_s_missing_score_is_dropped_where_asked(bad: float) -> None:
    scorer = Scorer((LENGTH, MODEL.model_copy(update={"on_error": "drop"})), ScoreConfig())
    found = scorer.total(["p", "p"], ["e", "e"], torch.tensor([[0.0, bad], [0.0, 2.0]]))
    assert math.isnan(found.scores[0]) and found.scores[1] == 1.0
    assert found.scored.tolist() == [False, True] and scorer.errors == {"not_finite": 1}
    with pytest.raises(DataError, match=r"no response of the step has a score.*'not_finite': 2"):
        scorer.total(["p"], ["e"], torch.tensor([[0.0, bad]]))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [5.0, -3.0, 2.0]),
        ({"clip": 2.5}, [2.5, -2.5, 2.0]),
        ({"missing_eos": "subtract", "missing_eos_value": 1.0}, [5.0, -4.0, 2.0]),
        ({"missing_eos": "replace", "missing_eos_value": -1.0}, [5.0, -1.0, 2.0]),
        ({"missing_eos": "scale", "missing_eos_value": 0.5}, [5.0, -1.5, 2.0]),
        ({"missing_eos": "subtract", "missing_eos_value": 9.0, "clip": 4.0}, [4.0, -4.0, 2.0]),
    ],
)
def test_answers_without_an_end(settings: dict[str, Any], expected: list[float]) -> None:
    scorer = Scorer((LENGTH,), ScoreConfig(**settings))
    found = scorer.shape(torch.tensor([5.0, -3.0, 2.0]), torch.tensor([True, False, True]))
    assert found.tolist() == expected


def test_functions_are_found_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_scores_here.py").write_text("def f(prompts, responses):\n    return [1] * len(responses)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_function("my_scores_here:f")(["p"], ["r"]) == [1]
    with pytest.raises(ConfigError, match="has no function 'g'"):
        load_function("my_scores_here:g")
    with pytest.raises(ConfigError, match="cannot import nowhere"):
        load_function("nowhere:f")


def test_a_function_sees_the_prompt_s_text() -> None:
    assert prompt_text([Message("user", "Hello?")]) == "Hello?"
    assert prompt_text([Message("system", "Be kind."), Message("user", "Hi")]) == "system: Be kind.\nuser: Hi"


def test_prompts_come_in_shuffled_rounds() -> None:
    def order(seed: int, count: int) -> list[int]:
        tree = {"run_dir": "x", "model": {"name": "m"}, "prompts": "p", "scores": [LENGTH.model_dump()], "seed": seed}
        config = build_config(PpoConfig, tree | {"batch": {"prompts_per_step": 1, "minibatch_sequences": 1,
                                                           "microbatch_sequences_per_gpu": 1}}, source="t")  # fmt: skip
        return [row for step in range(count) for row in prompt_rows_of(config, 10, step)]

    first = order(0, 30)
    assert first == order(0, 30) and first != order(1, 30)
    for start in (0, 10, 20):
        assert Counter(first[start : start + 10]) == Counter(range(10))
    assert first[:10] != first[10:20] and first[:10] != list(range(10))
