"""A training rank of a critic with a base of its own that may die or freeze."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf.config import PpoConfig
from rlhf.workers.context import WorkerContext
from rlhf.workers.critic import CriticWorker
from tests.support.chaos_faults import Faults
from tests.support.fragile.bound import bound_collectives, patient, require_configured


class FragileCritic(CriticWorker):
    """States ``critic-STEP-RANK``, before the first micro-batch of a step, and ``critic-save-STEP-RANK``.

    The collective timeout of the config holds from the first step on.
    """

    def __init__(self, context: WorkerContext, config: PpoConfig) -> None:
        self.faults, self._step = Faults(Path(context.run_dir)), -1
        self._bound = config.placement.collective_timeout_seconds
        super().__init__(context, patient(config))
        require_configured(context, self.config)

    def learn(self, batch: Any, epochs: list[Any], first_update: int) -> dict[str, float]:
        bound_collectives(self._bound)
        self._step = first_update // (self.config.batch.epochs * self.config.minibatches)
        self.faults.reach(f"critic-{self._step}-{self.context.rank}")
        return super().learn(batch, epochs, first_update)

    def save_state(self, directory: str, tag: str) -> list[str]:
        found = super().save_state(directory, tag)
        self.faults.reach(f"critic-save-{self._step}-{self.context.rank}")
        return found
