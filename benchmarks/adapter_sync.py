"""Carrying a 7B-shaped r=16 adapter to three workers of one host, and merge-and-ship of the same model's weights.

    python benchmarks/adapter_sync.py [--quick] [--workers 3]

The adapter has the tensors of a LoRA on every linear layer of a 7B model with grouped key heads (32 layers, 448
tensors, 84 MB in bf16). Four figures, all until the last worker has confirmed the hash of its *live* tensors:

* ``sync``: the trainer flattens, checks and hashes its adapter, and the workers take it from the object store;
* ``carry``: the same without the trainer's part;
* ``merge_and_ship``: B A is added to a copy of the weights, and those are carried. One layer's attention matrices
  (84 MB) are measured and scaled by bytes to the whole model: its 14 GB would not fit into a small machine;
* ``whole_policy``: what a policy trained without an adapter costs: the same weights as they are, piece by piece.

The sides run in turn, one merge and one piece after every fifth sync. Writes benchmarks/adapter-sync-<date>.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from typing import Any

import torch
from common import save
from torch import Tensor

from rlhf.config import PlacementConfig
from rlhf.weights.parts import write_parts
from rlhf.weights.snapshot import Header, Snapshot, pack
from rlhf.workers.group import WorkerGroup
from rlhf.workers.runtime import ray_runtime
from rlhf.workers.shipped import Shipped

LAYERS, RANK, HIDDEN, KV, INTER, VOCABULARY = 32, 16, 4096, 1024, 14336, 32000
LINEARS = {
    "q_proj": (HIDDEN, HIDDEN),
    "k_proj": (KV, HIDDEN),
    "v_proj": (KV, HIDDEN),
    "o_proj": (HIDDEN, HIDDEN),
    "gate_proj": (INTER, HIDDEN),
    "up_proj": (INTER, HIDDEN),
    "down_proj": (HIDDEN, INTER),
}
"""(out, in) of every linear layer."""
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
TARGET_MILLISECONDS = 40.0
MERGE_EVERY = 5
"""Syncs per merge: a merge drives everything else out of the caches, and no run does both."""


def adapter(seed: int) -> dict[str, Tensor]:
    """All tensors of the adapter, bf16."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for layer in range(LAYERS):
        for name, (rows, columns) in LINEARS.items():
            for part, shape in (("lora_A", (RANK, columns)), ("lora_B", (rows, RANK))):
                state[f"layers.{layer}.{name}.{part}.weight"] = torch.randn(shape, generator=generator).bfloat16()
    return state


def weights() -> dict[str, Tensor]:
    """One layer's attention matrices, bf16."""
    return {name: torch.zeros(LINEARS[name], dtype=torch.bfloat16) for name in ATTENTION}


class Trainer:
    """Holds the trained adapter and publishes it."""

    def __init__(self, context: Any) -> None:
        torch.set_num_threads(1)
        self.state, self.weights = adapter(0), weights()
        self.published: Snapshot | None = None
        self.shipped: Snapshot | None = None

    def snapshot(self, version: int) -> Snapshot:
        """The adapter, changed a little since the last version."""
        for tensor in list(self.state.values())[:2]:
            tensor.add_(0.125)
        self.published = pack(self.state, version, self.published)
        return self.published

    def merged(self, version: int) -> Snapshot:
        """A copy of the weights with B A added."""
        state = {}
        for name, weight in self.weights.items():
            prefix = f"layers.0.{name}"
            product = self.state[f"{prefix}.lora_B.weight"].float() @ self.state[f"{prefix}.lora_A.weight"].float()
            state[name] = (weight.float() + 2.0 * product).bfloat16()
        return pack(state, version)

    def piece(self, version: int) -> Snapshot:
        """Trained weights as they are."""
        self.weights[ATTENTION[0]].add_(0.125)
        self.shipped = pack(self.weights, version, self.shipped)
        return self.shipped


class Holder:
    """A rollout worker's tensors."""

    def __init__(self, context: Any) -> None:
        torch.set_num_threads(1)
        self.tensors = {"adapter": adapter(1), "weights": weights()}

    def install(self, snapshot: Snapshot, which: str) -> str:
        """Takes a version; returns the sha256 of the live tensors."""
        return write_parts([snapshot], self.tensors[which])


def ship(trainer: WorkerGroup, holders: WorkerGroup, method: str, which: str, version: int) -> tuple[float, float, int]:
    """(milliseconds in all, milliseconds after the trainer's answer, bytes); the snapshot is put once."""
    started = time.perf_counter()
    answer, buffer = trainer.submit_apart(0, method, (version,))
    header: Header = trainer.wait([answer])[0]
    ready = time.perf_counter()
    taken = holders.call("install", Shipped(header, buffer), which)
    done = time.perf_counter()
    if set(taken) != {header.sha256}:
        raise SystemExit("a worker holds other tensors than were published")
    return (done - started) * 1e3, (done - ready) * 1e3, header.num_bytes


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="15 rounds instead of 40")
    parser.add_argument("--workers", type=int, default=3)
    args = parser.parse_args()
    rounds = 15 if args.quick else 40
    load = os.getloadavg()[0]  # beside other work the figures are those of the other work
    placement = PlacementConfig(cpus_per_worker=0.1)
    with ray_runtime(placement, num_workers=args.workers + 1), tempfile.TemporaryDirectory() as folder:
        launch: dict[str, Any] = {"placement": placement, "run_dir": folder}
        trainer = WorkerGroup.launch("adapter_sync:Trainer", "trainer", size=1, **launch)
        holders = WorkerGroup.launch("adapter_sync:Holder", "holder", size=args.workers, **launch)
        measured: dict[str, list[tuple[float, float, int]]] = {"snapshot": [], "merged": [], "piece": []}
        for turn in range(-2, rounds):
            sides = (("snapshot", "adapter"), ("merged", "weights"), ("piece", "weights"))
            for method, which in sides if turn % MERGE_EVERY == 0 else sides[:1]:
                found = ship(trainer, holders, method, which, turn + 2)
                if turn >= 0:
                    measured[method].append(found)
        trainer.close()
        holders.close()
    whole = 2 * (LAYERS * sum(rows * columns for rows, columns in LINEARS.values()) + 2 * VOCABULARY * HIDDEN)
    moved = measured["merged"][0][2]
    sync, carry = (statistics.median(m[i] for m in measured["snapshot"]) for i in (0, 1))
    merge, piece = (statistics.median(m[0] for m in measured[side]) for side in ("merged", "piece"))
    result = {
        "workers": args.workers,
        "rounds": rounds,
        "load_average_per_core": round(load / (os.cpu_count() or 1), 2),
        "adapter_bytes": measured["snapshot"][0][2],
        "sync_ms_median": round(sync, 1),
        "carry_ms_median": round(carry, 1),
        "target_ms": TARGET_MILLISECONDS,
        "merge_and_ship_part_bytes": moved,
        "merge_and_ship_part_ms_median": round(merge, 1),
        "merge_and_ship_whole_bytes": whole,
        "merge_and_ship_whole_ms_scaled": round(merge * whole / moved),
        "merge_and_ship_over_sync": round(merge * whole / moved / sync),
        "whole_policy_part_ms_median": round(piece, 1),
        "whole_policy_ms_scaled": round(piece * whole / moved),
        "whole_policy_over_sync": round(piece * whole / moved / sync),
        "sync_ms": [round(m[0], 1) for m in measured["snapshot"]],
        "carry_ms": [round(m[1], 1) for m in measured["snapshot"]],
    }
    save("adapter-sync", result)


if __name__ == "__main__":
    main()
