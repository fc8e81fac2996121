"""A training rank of the policy that may die or freeze."""

from __future__ import annotations

from typing import Any

import torch

from rlhf.config import PpoConfig
from rlhf.workers.context import WorkerContext
from rlhf.workers.policy import PolicyWorker
from tests.support.fragile.bound import Bounded


class FragilePolicy(Bounded, PolicyWorker):
    """States ``NAME-STEP-RANK``: forward, reduce, optimizer, save; each once per step or more often."""

    def __init__(self, context: WorkerContext, config: PpoConfig) -> None:
        super().__init__(context, config)
        optimizer, reduce = self.engine._engine.optimizer, torch.distributed.all_reduce
        take_step = optimizer.step

        def step_or_fault(*args: Any, **kwargs: Any) -> Any:
            self._reach("optimizer")
            return take_step(*args, **kwargs)

        def reduce_or_fault(*args: Any, **kwargs: Any) -> Any:
            self._reach("reduce")
            return reduce(*args, **kwargs)

        optimizer.step = step_or_fault
        torch.distributed.all_reduce = reduce_or_fault

    def learn(self, batch: Any, epochs: list[Any], first_update: int, *args: Any) -> dict[str, float]:
        self.begin(self.config, first_update)
        return super().learn(batch, epochs, first_update, *args)

    def _minibatch(self, *args: Any, **kwargs: Any) -> Any:
        self._reach("forward")
        return super()._minibatch(*args, **kwargs)

    def save_state(self, directory: str, tag: str) -> list[str]:
        found = super().save_state(directory, tag)
        self._reach("save")
        return found

    def _reach(self, name: str) -> None:
        if self.step >= 0:
            self.faults.reach(f"{name}-{self.step}-{self.context.rank}")
