"""What the driver of PPO costs per step: 1 to 64 rollout workers that return recorded rollouts, without a model.

Every step does what the recipe's driver does: build tasks, scatter them, gather rollouts, pad them, advantages over the
whole batch, the batch into the object store, an adapter to all workers. Time is the driver's processor time and its
wall time, both without any model's work; the wall time holds the workers' checks of the adapter, which here share the
driver's own cores.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import matplotlib
import numpy as np
import ray
import torch
from common import save
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from rlhf.config import PlacementConfig, PpoConfig, build_config, derive_seed
from rlhf.rollout.experience import collect
from rlhf.rollout.protocol import Rollout
from rlhf.stages.judging import compute_advantages
from rlhf.workers.group import WorkerGroup, share
from rlhf.workers.runtime import ray_runtime

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STEP_SECONDS = 30.0
PROMPTS_PER_WORKER = 8


def created_bytes() -> int:
    """Bytes that were ever put into this node's object store."""
    return int(get_memory_info_reply(get_state_from_address()).store_stats.cumulative_created_bytes)


def one_step(
    group: WorkerGroup, config: PpoConfig, step: int, prompt: tuple[int, ...], adapter: Any
) -> dict[str, float]:
    """One step's driver work; seconds by act."""
    marks = [time.perf_counter()]
    tasks = [
        (f"{step}/{row}", prompt, derive_seed(0, "rollout", step, row))
        for row in range(len(group.actors) * PROMPTS_PER_WORKER)
    ]
    parts = [(tasks[i * PROMPTS_PER_WORKER : (i + 1) * PROMPTS_PER_WORKER], step) for i in range(len(group.actors))]
    found = group.scatter("generate", parts)
    rollouts = [Rollout(*fields) for part in found for fields in part]
    marks.append(time.perf_counter())
    batch = collect(rollouts, 0)
    noise = torch.zeros_like(batch.behaviour_logprobs)
    batch = batch.with_judgement(old_logprobs=batch.behaviour_logprobs, ref_logprobs=noise, values=noise)
    judged = compute_advantages(batch, torch.ones(len(rollouts)), config, 0.05, torch.arange(len(rollouts)))
    marks.append(time.perf_counter())
    share(judged.batch)
    marks.append(time.perf_counter())
    taken = group.call("install", share(adapter))
    if len({sha for sha, _ in taken}) != 1:
        raise RuntimeError("the workers hold different adapters")
    marks.append(time.perf_counter())
    names = ("act", "judge", "learn", "share")
    return dict(zip(names, (b - a for a, b in pairwise(marks)), strict=True))


def measure(num_workers: int, args: argparse.Namespace, run_dir: str) -> dict[str, Any]:
    """Figures for one number of workers."""
    tree = {"run_dir": run_dir, "model": {"name": "none"}, "prompts": "none",
            "scores": [{"kind": "function", "path": "a:b"}]}  # fmt: skip
    config = build_config(PpoConfig, tree, source="benchmark")
    placement = PlacementConfig(num_rollout_workers=num_workers, cpus_per_worker=0.02, start_timeout_seconds=900)
    started = time.perf_counter()
    group = WorkerGroup.launch("tests.support.recorded:RecordedRollout", "rollout", size=num_workers,
                               placement=placement, run_dir=run_dir, args=(args.response_tokens,))  # fmt: skip
    try:
        launch = time.perf_counter() - started
        prompt = tuple(range(args.prompt_tokens))
        adapter = np.random.default_rng(0).integers(0, 255, args.adapter_mib << 20, dtype=np.uint8)
        rows, processor, stored = [], [], []
        for step in range(args.steps + 1):
            before, used = created_bytes(), time.process_time()
            rows.append(one_step(group, config, step, prompt, adapter))
            processor.append(time.process_time() - used)
            stored.append(created_bytes() - before)
    finally:
        group.close()
    rows, processor, stored = rows[1:], processor[1:], stored[1:]  # the first step warms connections
    wall = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return {
        "workers": num_workers, "sequences": num_workers * PROMPTS_PER_WORKER, "launch_seconds": round(launch, 2),
        "driver_cpu_seconds": round(statistics.median(processor), 4),
        "driver_wall_seconds": round(statistics.median(sum(row.values()) for row in rows), 4),
        "wall_by_act": {name: round(value, 4) for name, value in wall.items()},
        "object_store_mib": round(statistics.median(stored) / 2**20, 2),
        "share_of_30_s_step": round(statistics.median(sum(row.values()) for row in rows) / STEP_SECONDS, 4),
    }  # fmt: skip


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Driver seconds and object-store bytes against the number of workers."""
    figure, left = plt.subplots(figsize=(7, 4))
    workers = [row["workers"] for row in rows]
    left.plot(workers, [row["driver_wall_seconds"] for row in rows], "o-", label="driver, wall")
    left.plot(workers, [row["driver_cpu_seconds"] for row in rows], "s--", label="driver, processor")
    left.axhline(0.05 * STEP_SECONDS, color="tab:red", lw=1, label="5% of a 30 s step")
    left.set(xlabel="rollout workers (8 prompts each)", ylabel="seconds per step", xscale="log", xticks=workers)
    left.set_xticklabels([str(n) for n in workers])
    right = left.twinx()
    right.plot(workers, [row["object_store_mib"] for row in rows], "^:", color="tab:gray", label="object store")
    right.set_ylabel("MiB put per step")
    lines = [*left.get_lines(), *right.get_lines()]
    left.legend(lines, [str(line.get_label()) for line in lines], loc="upper left", fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--response-tokens", type=int, default=512)
    parser.add_argument("--adapter-mib", type=int, default=80, help="a 7B model's rank-16 adapter in bf16")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder, ray_runtime(PlacementConfig(cpus_per_worker=0.02), num_workers=70):
        for number in args.workers:
            rows.append(measure(number, args, folder))
            print(rows[-1], flush=True)
    last = rows[-1]
    result = {
        "settings": {"prompts_per_worker": PROMPTS_PER_WORKER, "prompt_tokens": args.prompt_tokens,
                     "response_tokens": args.response_tokens, "adapter_mib": args.adapter_mib, "steps": args.steps},
        "rows": rows, "target": "under 5% of a 30 s step at 64 workers x 8 prompts",
        "met": last["workers"] >= 64 and last["share_of_30_s_step"] < 0.05, "ray": ray.__version__,
    }  # fmt: skip
    if not args.no_save:
        plot(rows, save("driver_overhead", result).with_suffix(".svg"))


if __name__ == "__main__":
    main()
