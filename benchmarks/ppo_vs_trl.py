"""Whole PPO steps against TRL 1.12's PPOTrainer: same model, prompts, response tokens, LoRA rank, epochs, minibatches.

    python benchmarks/ppo_vs_trl.py [--quick] [--rounds N] [--cases fixed-float32,natural-float32,...]

Both sides train with a critic and are scored by a reward model; both run in turn on all cores, and the first step of
each run is left out. The figure is the median of the ratios of samples per second. Beside it stands the floor: the
seconds that the matrix products of a step need at the machine's measured peak. Both take the log-probs of sampling for
the old ones. Natural lengths: responses end by
themselves, after 30 % of the maximum on average. TRL 1.12 is installed into build/ at the first call.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import save
from peer import install_peer, run_peer
from ppo_workload import Workload, build_model, floor_seconds, matrix_peak, write_prompts

CASES = {
    "fixed-float32": Workload(),
    "natural-float32": Workload(natural=True),
    "fixed-bfloat16": Workload(dtype="bfloat16"),
    "natural-bfloat16": Workload(dtype="bfloat16", natural=True),
}
ACTS = ("act", "judge", "learn", "share")
WANTED = {"fixed-float32": 1.8, "fixed-bfloat16": 1.8, "natural-float32": 3.0, "natural-bfloat16": 3.0}


def run_trl(work: Workload, folder: Path, prompts: list[list[int]], threads: int, seed: int) -> dict[str, Any]:
    """One run of TRL's trainer in a process of its own."""
    order = {
        "workload": asdict(work), "model": str(folder / "model"), "prompts": prompts, "threads": threads,
        "seed": seed, "output": str(folder / "peer"),
    }  # fmt: skip
    return run_peer("trl_ppo.py", order, folder)


def prepare_reward(folder: Path) -> Path:
    """A reward model on the same base: an adapter and a head, after one step of training."""
    from rlhf.config import RewardConfig, build_config
    from rlhf.stages.reward import run_reward

    paths = {"train": folder / "pairs.jsonl", "evaluation": folder / "held_out_pairs.jsonl"}
    for letter, path in zip("ab", paths.values(), strict=True):
        rows = [{"prompt": f"{letter} {i}", "chosen": f" yes {i}", "rejected": f" no {i}"} for i in range(16)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tree = {
        "run_dir": str(folder / "reward"),
        "model": {"name": str(folder / "model"), "chat_style": "plain", "dtype": "float32"},
        "data": {**{part: str(path) for part, path in paths.items()}, "max_sequence_tokens": 128},
        "lora": {"r": 4, "alpha": 8},
        "batch": {"minibatch_pairs": 4, "microbatch_pairs_per_gpu": 4},
        "max_steps": 1,
        "placement": {"num_ranks": 1},
        "telemetry": {"tensorboard": False},
    }
    run_reward(build_config(RewardConfig, tree, source="benchmark"))
    return folder / "reward"


def run_ours(work: Workload, folder: Path, ranks: int, seed: int, *, watch_memory: bool = False) -> dict[str, Any]:
    """One run of this system, ranks and rollout workers sharing the cores."""
    from rlhf.config import PpoConfig, build_config
    from rlhf.stages.ppo import run_ppo
    from rlhf.telemetry.memory import PeakMemory
    from rlhf.telemetry.metrics import read_metrics

    marks: list[float] = []
    run_dir = folder / f"ours-{time.monotonic_ns()}"
    threads = max(1, (os.cpu_count() or 1) // ranks)
    minibatch = work.prompts_per_step // work.minibatches
    tree = {
        "run_dir": str(run_dir),
        "seed": seed,
        "model": {"name": str(folder / "model"), "chat_style": "plain", "dtype": work.dtype},
        "prompts": str(folder / "prompts.jsonl"),
        "scores": [{"kind": "reward_model", "run": str(folder / "reward")}],
        "lora": {"r": work.lora_r, "alpha": 2 * work.lora_r},
        "optim": {"learning_rate": work.learning_rate, "schedule": "constant"},
        "engine": {"zero_stage": 0},
        "checkpoint": {"every": 10**6},
        "num_steps": work.steps,
        "loss": {"old_logprobs": "rollout"},  # as TRL does: it keeps those of its sampling
        "rollout": {"max_response_tokens": work.response_tokens, "max_prompt_tokens": work.prompt_tokens},
        "placement": {"num_ranks": ranks, "num_rollout_workers": ranks, "threads_per_worker": threads},
        "batch": {
            "prompts_per_step": work.prompts_per_step,
            "responses_per_prompt": 1,
            "minibatch_sequences": minibatch,
            "microbatch_sequences_per_gpu": minibatch // ranks,
            "epochs": work.epochs,
        },
        "telemetry": {"tensorboard": False},
    }
    if work.dtype != "float32":
        tree |= {"sync_tolerance": 0.5, "ratio_tolerance": 0.5, "mismatch_limit": 0.5}
    config = build_config(PpoConfig, tree, source="benchmark")
    # reading every process's memory takes processor time and stops its page faults: not while time is measured
    with PeakMemory() if watch_memory else nullcontext() as memory:
        run_ppo(config, progress=lambda *_, **__: marks.append(time.perf_counter()))
    rows = read_metrics(run_dir)
    seconds = marks[-1] - marks[0]
    return {
        "step_seconds": seconds / (len(marks) - 1),
        "samples_per_second": work.prompts_per_step * (len(marks) - 1) / seconds,
        "mean_response_tokens": statistics.mean(row["response_tokens_mean"] for row in rows[1:]),
        "acts": {k: statistics.mean(row[f"seconds.{k}"] for row in rows[1:]) for k in ACTS},
        "peak_pss_mib": (memory.peak_pss_mib or memory.peak_rss_mib) if memory is not None else None,
    }


def compare(name: str, work: Workload, rounds: int, ranks: int, peak: float) -> dict[str, Any]:
    """Both sides in turn."""
    with tempfile.TemporaryDirectory(prefix="ppo-") as place:
        folder = Path(place)
        build_model(work, folder / "model")
        prompts = write_prompts(work, folder / "prompts.jsonl")
        prepare_reward(folder)
        ours, peer = [], []
        for number in range(rounds):
            ours.append(run_ours(work, folder, ranks, number))
            peer.append(run_trl(work, folder, prompts, os.cpu_count() or 1, number))
            print(name, number, json.dumps({"ours": ours[-1], "trl": peer[-1]}), file=sys.stderr)
    ratios = [a["samples_per_second"] / b["samples_per_second"] for a, b in zip(ours, peer, strict=True)]
    mean = statistics.mean(run["mean_response_tokens"] for run in ours)
    floor = floor_seconds(work, peak, mean)
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(r, 3) for r in ratios],
        "wanted": WANTED[name],
        "samples_per_second": {
            side: round(statistics.median(r["samples_per_second"] for r in runs), 2)
            for side, runs in (("ours", ours), ("trl", peer))
        },
        "mean_response_tokens": round(mean, 1),
        "floor_step_seconds": round(floor, 3),
        "times_the_floor": {
            side: round(statistics.median(r["step_seconds"] for r in runs) / floor, 2)
            for side, runs in (("ours", ours), ("trl", peer))
        },
        "acts": ours[-1]["acts"],
        "workload": asdict(work),
    }


def main() -> None:
    """Runs the cases and writes one dated file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of the two float32 cases, fewer steps")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=2, help="DeepSpeed ranks, and as many rollout workers")
    parser.add_argument("--cases", default=",".join(CASES))
    args = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    install_peer()
    names = [n for n in args.cases.split(",") if not args.quick or n.endswith("float32")]
    found = {}
    for name in names:
        work = replace(CASES[name], steps=3) if args.quick else CASES[name]
        peak = matrix_peak(os.cpu_count() or 1, work.dtype)
        found[name] = {
            **compare(name, work, 1 if args.quick else args.rounds, args.ranks, peak),
            "peak_gflops": peak / 1e9,
        }
    save("ppo-vs-trl" + ("-quick" if args.quick else ""), {"ranks": args.ranks, "cases": found})


if __name__ == "__main__":
    main()
