"""A training rank of a critic with a base of its own that may die or freeze."""

from __future__ import annotations

from typing import Any

from rlhf.workers.critic import CriticWorker
from tests.support.fragile.bound import Bounded


class FragileCritic(Bounded, CriticWorker):
    """States ``critic-STEP-RANK``, before the first micro-batch of a step, and ``critic-save-STEP-RANK``."""

    def learn(self, batch: Any, epochs: list[Any], first_update: int) -> dict[str, float]:
        self.begin(self.config, first_update)
        self.faults.reach(f"critic-{self.step}-{self.context.rank}")
        return super().learn(batch, epochs, first_update)

    def save_state(self, directory: str, tag: str) -> list[str]:
        found = super().save_state(directory, tag)
        self.faults.reach(f"critic-save-{self.step}-{self.context.rank}")
        return found
