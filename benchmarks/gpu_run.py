"""One case of benchmarks/gpu.py in a process of its own: ``python benchmarks/gpu_run.py ORDER.json``.

After every step it writes when the step ended and how much memory the workers held, so that a run that is cut short
leaves what it has measured.
"""

from __future__ import annotations

import json
import sys
import time
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


class Watch:
    """Remembers the worker groups that a run starts, and asks their processes between steps."""

    def __init__(self, output: Path) -> None:
        from rlhf.workers.group import WorkerGroup

        self.groups: dict[str, WorkerGroup] = {}
        self.steps: list[dict[str, Any]] = []
        self._output, launch = output, WorkerGroup.launch

        def remember(worker: Any, role: str, **words: Any) -> WorkerGroup:
            self.groups[role] = launch(worker, role, **words)
            return self.groups[role]

        WorkerGroup.launch = staticmethod(remember)  # type: ignore[method-assign,assignment]

    def step_done(self, *_: Any, **__: Any) -> None:
        """To be called after every step."""
        import ray

        ended = time.perf_counter()
        memory: dict[str, Any] = {
            role: ray.get(group.actors[0].__ray_call__.remote(read_memory), timeout=60)
            for role, group in self.groups.items()
        }
        self.steps.append({"ended": ended, "memory": memory, "goes_on": time.perf_counter()})
        self._output.write_text(json.dumps(self.steps), encoding="utf-8")


def main() -> None:
    """Runs the case."""
    from rlhf.config import PpoConfig, build_config
    from rlhf.stages.ppo import run_ppo

    order = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    watch = Watch(Path(order["output"]))
    run_ppo(build_config(PpoConfig, order["config"], source="benchmark"), progress=watch.step_done)


if __name__ == "__main__":
    main()
