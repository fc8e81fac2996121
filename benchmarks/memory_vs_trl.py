"""Memory of PPO with four roles on a model of 100 million parameters, against TRL 1.12's PPOTrainer.

    python benchmarks/memory_vs_trl.py [--quick]

The peak of the proportional set size over the whole process tree (shared pages count once), less the peak of the same
program with a model of almost no size: what libraries, Ray and DeepSpeed take in any case is left out on both sides.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import save
from peer import install_peer
from ppo_vs_trl import prepare_reward, run_ours, run_trl
from ppo_workload import Workload, build_model, write_prompts

LARGE = Workload(hidden_size=768, num_layers=16, prompts_per_step=16, minibatches=4, epochs=1, steps=2)
SMALL = replace(LARGE, hidden_size=64, num_layers=1)


def build_elsewhere(work: Workload, directory: Path) -> None:
    """Builds the model in a process of its own: what it frees would stay in this one, and count as our driver's."""
    process = multiprocessing.get_context("spawn").Process(target=build_model, args=(work, directory))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the model was not built: exit code {process.exitcode}")


def peaks(work: Workload, ranks: int, seed: int) -> dict[str, float]:
    """MiB of both sides."""
    from rlhf.telemetry.memory import PeakMemory

    with tempfile.TemporaryDirectory(prefix="memory-") as place:
        folder = Path(place)
        build_elsewhere(work, folder / "model")
        prompts = write_prompts(work, folder / "prompts.jsonl")
        prepare_reward(folder)
        ours = run_ours(work, folder, ranks, seed, watch_memory=True)["peak_pss_mib"]
        with PeakMemory(interval_seconds=0.2, pss_every=1) as memory:
            before = memory.series[0].pss_mib or 0.0
            run_trl(work, folder, prompts, os.cpu_count() or 1, seed)
        return {"ours": ours, "trl": (memory.peak_pss_mib or 0.0) - before}


def main() -> None:
    """Runs both sizes and writes one dated file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=1, help="DeepSpeed ranks, and as many rollout workers")
    args = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    install_peer()
    rounds: list[dict[str, Any]] = []
    for number in range(1 if args.quick else args.rounds):
        small, large = peaks(SMALL, args.ranks, number), peaks(LARGE, args.ranks, number)
        beyond = {side: large[side] - small[side] for side in large}
        rounds.append({"small": small, "large": large, "beyond": beyond, "ratio": beyond["ours"] / beyond["trl"]})
        print(rounds[-1], file=sys.stderr)
    ratio = statistics.median(r["ratio"] for r in rounds)
    save(
        "memory-vs-trl" + ("-quick" if args.quick else ""),
        {"ratio": round(ratio, 3), "wanted": 0.45, "ranks": args.ranks, "rounds": rounds, "workload": asdict(LARGE)},
    )


if __name__ == "__main__":
    main()
