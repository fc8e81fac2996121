"""A scorer worker that may die."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf.workers.context import WorkerContext
from rlhf.workers.scorer import ScorerWorker
from tests.support.chaos_faults import Faults


class FragileScorer(ScorerWorker):
    """States: ``build``, and ``score-CALL-RANK`` where calls are counted in each process."""

    def __init__(self, context: WorkerContext, *args: Any) -> None:
        self.faults, self._calls = Faults(Path(context.run_dir)), 0
        self.faults.reach("build")
        super().__init__(context, *args)

    def score_pieces(self, *args: Any) -> list[Any]:
        self.faults.reach(f"score-{self._calls}-{self.context.rank}")
        self._calls += 1
        return super().score_pieces(*args)
