"""One case of benchmarks/gpu.py in a process of its own: ``python benchmarks/gpu_run.py ORDER.json``.

After every step it writes when the step ended and how much memory the workers held, so that a run that is cut short
leaves what it has measured.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))


def read_memory(_: Any) -> dict[str, float]:
    """Bytes at the peak since the last call, in the process that runs it; on a CPU the peak of the whole process."""
    import resource

    import torch

    if not torch.cuda.is_available():
        return {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0}
    found = {
        "tensors": float(torch.cuda.max_memory_allocated()),
        "reserved": float(torch.cuda.max_memory_reserved()),
    }
    torch.cuda.reset_peak_memory_stats()
    return found


def main() -> None:
    """Runs the case: the recipe's own parts, so that its workers can be asked between steps."""
    import ray

    from rlhf.config import PpoConfig, build_config
    from rlhf.stages.ppo import train
    from rlhf.stages.ppo_run import open_session, start

    order = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    steps: list[dict[str, Any]] = []
    with ExitStack() as stack:
        run = start(open_session(build_config(PpoConfig, order["config"], source="benchmark"), stack), stack)

        def memory_of_both() -> dict[str, Any]:
            actors = {"policy": run.policy.actors[0], "rollout": run.fleet.living[0]}
            asked = {role: actor.__ray_call__.remote(read_memory) for role, actor in actors.items()}
            return {role: ray.get(ref, timeout=60) for role, ref in asked.items()}

        at_start = memory_of_both()  # a worker loads a base of its own before it borrows the rank's

        def step_done(*_: Any, **__: Any) -> None:
            ended, memory = time.perf_counter(), memory_of_both()
            steps.append({"ended": ended, "memory": memory, "at_start": at_start, "goes_on": time.perf_counter()})
            Path(order["output"]).write_text(json.dumps(steps), encoding="utf-8")

        train(run, step_done)


if __name__ == "__main__":
    main()
