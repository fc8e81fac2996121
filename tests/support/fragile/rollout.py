"""A rollout worker that may die or freeze."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf.config import SamplingConfig
from rlhf.rollout.protocol import PromptTask, Rollout
from rlhf.weights.snapshot import Snapshot
from rlhf.workers.context import WorkerContext
from rlhf.workers.rollout import RolloutWorker
from tests.support.chaos_faults import Faults

TOKENS_BEFORE_A_FAULT = 3


class FragileRollout(RolloutWorker):
    """States: ``generate-VERSION`` after some tokens are drawn, ``install-VERSION`` before an adapter is taken."""

    def __init__(self, context: WorkerContext, *args: Any, **kwargs: Any) -> None:
        self.faults = Faults(Path(context.run_dir))
        super().__init__(context, *args, **kwargs)

    def install(self, snapshot: Snapshot) -> tuple[str, float]:
        self.faults.reach(f"install-{snapshot.version}")
        return super().install(snapshot)

    def generate(self, tasks: list[PromptTask], sampling: SamplingConfig, version: int) -> list[Rollout]:
        passes = 0

        def count() -> None:
            nonlocal passes
            passes += 1
            if passes == TOKENS_BEFORE_A_FAULT:
                self.faults.reach(f"generate-{version}")

        words, beat = self.generator._slot_words, self.generator._slot_words["beat"]
        words["beat"] = lambda: (count(), beat())
        try:
            return super().generate(tasks, sampling, version)
        finally:
            words["beat"] = beat
