"""``python -m cluster.checks.probe``: the parts of the doctor that load torch or ray, in a process of their own."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from datetime import timedelta
from typing import Any


def accelerators() -> dict[str, Any]:
    """GPUs that torch sees."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [torch.cuda.get_device_name(i) for i in range(count)]
    return {"torch": torch.__version__, "names": names, "bf16": bool(count) and torch.cuda.is_bf16_supported()}


def collective(backend: str, ranks: int, address: str, port: int) -> dict[str, Any]:
    """Adds one number per rank in ``ranks`` processes."""
    context = multiprocessing.get_context("spawn")
    started = time.perf_counter()
    others = [context.Process(target=join, args=(backend, r, ranks, address, port)) for r in range(1, ranks)]
    for process in others:
        process.start()
    try:
        join(backend, 0, ranks, address, port)
        for process in others:
            process.join(20)
    finally:
        for process in others:
            process.kill()
    return {"seconds": time.perf_counter() - started}


def join(backend: str, rank: int, ranks: int, address: str, port: int) -> None:
    """One rank: joins, adds, checks the sum, leaves."""
    import torch
    import torch.distributed as dist

    dist.init_process_group(
        backend, init_method=f"tcp://{address}:{port}", rank=rank, world_size=ranks, timeout=timedelta(seconds=20)
    )
    device = torch.device("cuda", rank % torch.cuda.device_count()) if backend == "nccl" else torch.device("cpu")
    value = torch.full((1,), float(rank + 1), device=device)
    dist.all_reduce(value)
    if value.item() != ranks * (ranks + 1) / 2:
        raise SystemExit(f"rank {rank}: the sum is {value.item()}")
    dist.destroy_process_group()


def object_store() -> dict[str, Any]:
    """Starts a private Ray runtime and reads a shared array in a worker."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_worker_niceness", "0")
    import logging

    import numpy as np
    import ray

    started = time.perf_counter()
    ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=2**27, log_to_driver=False,
             logging_level=logging.ERROR, configure_logging=False)  # fmt: skip
    start = time.perf_counter() - started
    try:
        total: Any = ray.remote(lambda array: int(array.sum()))
        array = np.ones(2**25, dtype=np.uint8)
        ray.get(total.remote(ray.put(array[:1])), timeout=30)  # the worker's own start
        began = time.perf_counter()
        if ray.get(total.remote(ray.put(array)), timeout=30) != 2**25:
            raise SystemExit("the worker read other bytes than were put")
        return {"start": start, "read": time.perf_counter() - began}
    finally:
        ray.shutdown()


def main(words: list[str]) -> int:
    """Runs one probe; its result is the last line of stdout."""
    if words[0] == "accelerators":
        found = accelerators()
    elif words[0] == "collective":
        found = collective(words[1], int(words[2]), words[3], int(words[4]))
    else:
        found = object_store()
    sys.stdout.write("\n" + json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
