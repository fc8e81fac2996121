"""Samples that a resumed run is about to write again are dropped first."""

from __future__ import annotations

import json
from pathlib import Path

from rlhf.stages.ppo_run import rewind_samples


def test_samples_of_later_steps_and_torn_lines_go(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    rewind_samples(path, 2)
    assert not path.exists()
    lines = [json.dumps({"step": step, "text": f"answer\n{number}"}) for step in range(4) for number in range(2)]
    path.write_text("\n".join([*lines, '{"step": 1, "te']), encoding="utf-8")
    rewind_samples(path, 2)
    assert path.read_text(encoding="utf-8").splitlines() == lines[:4]
    rewind_samples(path, 0)
    assert path.read_text(encoding="utf-8") == ""
