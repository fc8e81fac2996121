"""No sample is drawn twice, also where a step holds a prompt of two epochs."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rlhf.stages.ppo import _draw
from tests.support.ppo import tiny_config

NUM_PROMPTS, NUM_STEPS = 6, 12


def test_keys_and_seeds_are_unique_across_epochs(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path / "run", num_steps=NUM_STEPS)
    submitted: list[Any] = []
    session = SimpleNamespace(
        prompts=[SimpleNamespace(id=f"p{i}") for i in range(NUM_PROMPTS)],
        prompt_ids=[(i,) for i in range(NUM_PROMPTS)],
    )
    fleet = SimpleNamespace(submit=lambda tasks, *_: submitted.append(tasks))
    run: Any = SimpleNamespace(
        config=config, session=session, fleet=fleet, next_draw=0, ahead=deque(), channel=SimpleNamespace(version=0)
    )
    _draw(run, upto=NUM_STEPS)
    rows = [rows for _, rows, _ in run.ahead]
    assert any(len(set(r)) < config.batch.prompts_per_step for r in rows), "no step holds a prompt twice: no power"
    tasks = [task for step in submitted for task in step]
    assert len({task.key for task in tasks}) == len({task.seed for task in tasks}) == len(tasks) == 16 * NUM_STEPS
