"""Runs the quickstart on several seeds and keeps each summary with the checks it has to pass."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import HERE, save


def run(seed: int, folder: Path) -> dict:
    """One fresh quickstart; its summary."""
    root = folder / f"seed{seed}" / "quickstart"
    command = [str(Path(sys.executable).with_name("rlhf")), "quickstart", "--run-dir", str(root), "--seed", str(seed)]
    subprocess.run(command, check=True, cwd=HERE.parent)
    summary = json.loads((root / "summary.json").read_text(encoding="utf-8"))
    for key in ("store", "next_commands"):  # they name this machine's folders
        summary.pop(key, None)
    return summary


def checks(summary: dict) -> dict[str, bool]:
    """What every seed has to reach."""
    win, reward = summary["win_rate"], summary["reward_model"]
    return {
        "seconds <= 300": summary["seconds"]["total"] <= 300,
        "peak_rss_mib <= 8192": summary["peak_rss_mib"] <= 8192,
        "win_rate >= 0.75": win["mean"] >= 0.75,
        "ci_low > 0.6": win["ci_low"] > 0.6,
        "reward accuracy within 0.05 of the ceiling": abs(reward["accuracy"] - reward["ceiling"]) <= 0.05,
        "kl under its limit": summary["kl"] < summary["kl_limit"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", nargs="*", type=int, default=[0, 1, 2], metavar="SEED", help="default: 0 1 2")
    seeds = parser.parse_args().seeds
    with tempfile.TemporaryDirectory() as folder:
        summaries = {f"seed_{seed}": run(seed, Path(folder)) for seed in seeds}
    passed = {name: checks(summary) for name, summary in summaries.items()}
    save("quickstart", {"checks": passed, "summaries": summaries})
    if not all(all(row.values()) for row in passed.values()):
        sys.exit("not every seed passed")


if __name__ == "__main__":
    main()
