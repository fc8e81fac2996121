"""Three ranks that sum gradients in shared memory; prints what each found, as a JSON list.

Runs as its own process: ``python -m tests.support.shared_sum_ranks STORE_FILE``.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from rlhf.workers.lean import lean_imports

with lean_imports():
    import torch
    from torch import Tensor, nn

    from rlhf.engine import shared_sum

RANKS, ROUNDS = 3, 30
BOUND = timedelta(seconds=5)


def gradient_of(rank: int, number: int, index: int) -> Tensor | None:
    """Of a parameter in a round; one rank has none for the first parameter in every third round."""
    if index == 0 and rank == 1 and number % 3 == 0:
        return None
    numbers = torch.Generator().manual_seed(97 * number + 7 * rank + index)
    return torch.randn((4, 5) if index == 0 else (300,), generator=numbers)


def mean_of(number: int, index: int) -> Tensor:
    """What every rank has to find."""
    found = [gradient_of(rank, number, index) for rank in range(RANKS)]
    return torch.stack([g for g in found if g is not None]).sum(dim=0) / RANKS


def work(rank: int, store: str, results: Any) -> None:
    """One rank."""
    shared = torch.distributed.FileStore(store, RANKS)
    torch.distributed.init_process_group("gloo", store=shared, rank=rank, world_size=RANKS, timeout=BOUND)
    group = torch.distributed.group.WORLD
    parameters = [nn.Parameter(torch.zeros(4, 5)), nn.Parameter(torch.zeros(300))]
    told: dict[str, Any] = {}
    told["large"] = shared_sum.form([nn.Parameter(torch.empty(shared_sum.MOST_BYTES // 8))], group) is None
    told["types"] = shared_sum.form([*parameters, nn.Parameter(torch.zeros(2).double())], group) is None
    mapped = shared_sum._mapped
    if rank == 1:  # as on another host, whose process of this number has another file there, or none
        shared_sum._mapped = lambda process, descriptor, token, size: mapped(process, descriptor, token[::-1], size)
    told["elsewhere"] = shared_sum.form(parameters, group) is None
    shared_sum._mapped = mapped
    found = shared_sum.form(parameters, group)
    assert found is not None
    open_files = [entry.readlink() for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    told["descriptors"] = sum("rlhf-gradients" in str(target) for target in open_files)
    off = 0.0
    for number in range(ROUNDS):
        for index, parameter in enumerate(parameters):
            parameter.grad = gradient_of(rank, number, index)
        time.sleep(0.01 * ((number + rank) % RANKS))  # each is late in turn
        found.reduce()
        for index, parameter in enumerate(parameters):
            assert parameter.grad is not None and parameter.grad.shape == parameter.shape
            off = max(off, float((parameter.grad - mean_of(number, index)).abs().max()))
    told["off"] = off
    told["last"] = [float(p.grad.double().sum()) for p in parameters if p.grad is not None]
    results.put((rank, told))
    if rank == 2:
        results.close()
        results.join_thread()
        os._exit(0)  # without a word to the others
    began = time.monotonic()
    try:
        for _ in range(2):
            found.reduce()
        told["noticed"] = None
    except RuntimeError:
        told["noticed"] = time.monotonic() - began
    results.put((rank, told))


def main() -> None:
    """All ranks, and what they told last. Forked, they have their libraries: the bound holds for the group alone."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=work, args=(rank, sys.argv[1], results)) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    found = dict(results.get(timeout=90) for _ in range(2 * RANKS - 1))
    for process in ranks:
        process.join(timeout=30)
        if process.is_alive():
            process.kill()
    sys.stdout.write(json.dumps([found[rank] for rank in range(RANKS)]) + "\n")


if __name__ == "__main__":
    main()
