"""Reward model on real human preferences, SFT on real instructions: does each learn from rows it has not seen?

The data are not part of the project: give a preference file in HH format and an instruction file.

Usage: python benchmarks/real_data.py [--model DIR] [--preferences hh.jsonl] [--instructions tasks.jsonl]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import HERE, save

ROOT = HERE.parent
SHARED = "../shared"


def stage(name: str, run_dir: Path, *overrides: str) -> dict:
    """Runs one stage through the command line; its summary."""
    rlhf = str(Path(sys.executable).with_name("rlhf"))
    command = [rlhf, name, "--config", f"configs/{name}/tiny_cpu.yaml", f"run_dir={run_dir}", *overrides]
    subprocess.run(command, check=True, cwd=ROOT)
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    return {"overrides": [o for o in overrides if not o.startswith(("model.name", "run_dir"))], **summary}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=f"{SHARED}/models/stories260k")
    parser.add_argument("--preferences", default=f"{SHARED}/data/hh_harmless.jsonl")
    parser.add_argument("--instructions", default=f"{SHARED}/data/seed_tasks.jsonl")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sft = stage("sft", Path(folder) / "sft", f"model.name={args.model}", f"data.train={args.instructions}")
        reward = stage("reward", Path(folder) / "reward", f"model.name={args.model}", f"data.train={args.preferences}")
    for summary in (sft, reward):
        for key in ("losses", "versions", "git_sha"):
            summary.pop(key, None)
    save("real-data", {"sft": sft, "reward": reward})


if __name__ == "__main__":
    main()
