"""A reward model that judges an evaluation has a GPU where scorers have one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from rlhf.config import EvaluateConfig, build_config
from rlhf.errors import ConfigError
from rlhf.stages import evaluate

CONFIG = {
    "stage": "evaluate",
    "run_dir": "runs/x",
    "model": {"name": "runs/ppo"},
    "baseline": "runs/sft",
    "prompts": "p.jsonl",
    "judge": {"kind": "reward_model", "run": "runs/reward"},
}


@pytest.mark.parametrize(
    ("asked", "gpus", "given"), [(None, 4.0, 1.0), (None, 0.0, 0.0), (0, 4.0, 0.0), (0.5, 1.0, 0.5)]
)
def test_the_judge_is_placed_as_scorers_are(
    asked: float | None, gpus: float, given: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[dict[str, Any]] = []

    def launch(*_: Any, **words: Any) -> Any:
        launched.append(words)
        return SimpleNamespace(call=lambda *_: [[0.0]], close=lambda: None)

    monkeypatch.setattr(evaluate.WorkerGroup, "launch", launch)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": gpus})
    config: Any = build_config(EvaluateConfig, CONFIG | {"placement": {"gpus_per_scorer_worker": asked}}, source="test")
    assert evaluate.make_judge(config, "runs/x")([], []) == [0.0]
    assert launched[0]["gpus_per_worker"] == given


def test_the_judge_is_one_of_those_who_say_what_they_take_of_nodes_to_come() -> None:
    waits = {"wait_for_nodes": True, "gpus_per_rollout_worker": 1}
    with pytest.raises(ConfigError, match=r"set placement\.gpus_per_scorer_worker \(1"):
        build_config(EvaluateConfig, CONFIG | {"placement": waits}, source="test")
    build_config(EvaluateConfig, CONFIG | {"placement": waits | {"gpus_per_scorer_worker": 0}}, source="test")
