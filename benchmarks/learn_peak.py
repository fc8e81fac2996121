"""Share of the machine's matrix-product peak that the learn phase reaches, and what driver and Ray cost of a step.

    python benchmarks/learn_peak.py [--quick] [--rounds N]

A random Llama with 100 million parameters, float32, two DeepSpeed ranks that share the cores. Achieved operations are
those that the updates need (see ppo_workload.py), over the wall time of the learn phase; the peak is measured in the
same run, before and after. Overhead is what a step takes beyond the work of its slowest worker in each act.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import save
from ppo_vs_trl import prepare_reward, run_ours
from ppo_workload import Workload, build_model, learn_operations, matrix_peak, write_prompts

WORK = Workload(hidden_size=768, num_layers=16, prompts_per_step=16, minibatches=2, epochs=2, steps=3)


def main() -> None:
    """Runs the rounds and writes one dated file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=2)
    args = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    cores, shares, runs = os.cpu_count() or 1, [], []
    with tempfile.TemporaryDirectory(prefix="peak-") as place:
        folder = Path(place)
        build_model(WORK, folder / "model")
        write_prompts(WORK, folder / "prompts.jsonl")
        prepare_reward(folder)
        for number in range(1 if args.quick else args.rounds):
            before = matrix_peak(cores, WORK.dtype)
            run = run_ours(WORK, folder, args.ranks, number)
            peak = max(before, matrix_peak(cores, WORK.dtype))
            achieved = learn_operations(WORK, run["mean_response_tokens"]) / run["acts"]["learn"]
            shares.append(achieved / peak)
            runs.append({**run, "achieved_gflops": achieved / 1e9, "peak_gflops": peak / 1e9})
            print(runs[-1], file=sys.stderr)
    save(
        "learn-peak" + ("-quick" if args.quick else ""),
        {"share_of_peak": round(statistics.median(shares), 3), "wanted": 0.5, "runs": runs, "workload": asdict(WORK)},
    )


if __name__ == "__main__":
    main()
