"""A rank of supervised fine-tuning that may die."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from rlhf.workers.sft import SftStageTrainer, SftWorker
from tests.support.chaos_faults import Faults


class FragileSft(SftWorker):
    """States ``step-STEP-RANK``: STEP optimizer steps are done and committed, the next is about to begin."""

    def _build_trainer(self, rows: list[dict[str, Any]], evaluation: list[dict[str, Any]]) -> SftStageTrainer:
        trainer = super()._build_trainer(rows, evaluation)
        trainer.add_callback(_ReachSteps(Faults(Path(self.context.run_dir)), self.context.rank))
        return trainer


class _ReachSteps(TrainerCallback):
    def __init__(self, faults: Faults, rank: int) -> None:
        self._faults, self._rank = faults, rank

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self._faults.reach(f"step-{state.global_step}-{self._rank}")
