"""Writes the golden trajectories anew (``python -m tests.ray.write_golden``) when a change is meant to move them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from rlhf.config import PlacementConfig
from rlhf.telemetry.environment import versions
from rlhf.workers.runtime import ray_runtime
from tests.ray.test_trl_stages import GOLDEN, STEPS, golden_files, train_reward, train_sft
from tests.support.tiny import build_model


def main() -> None:
    """Runs both stages as the tests do."""
    with tempfile.TemporaryDirectory() as folder, ray_runtime(PlacementConfig(num_ranks=2), num_workers=2):
        root = Path(folder)
        base, files = build_model(root / "base"), golden_files(root)
        sft = train_sft(base, files, root / "sft", 0, 2, max_steps=STEPS)
        reward = train_reward(root / "sft", files, root / "reward", 2, 2, max_steps=STEPS)
    for name, summary in (("sft", sft), ("reward", reward)):
        record = {"torch": versions()["torch"], "num_ranks": 2, "losses": summary["losses"]}
        (GOLDEN / f"{name}_20_steps.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
