"""A training rank of the policy that may die or freeze."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rlhf.config import PpoConfig
from rlhf.workers.context import WorkerContext
from rlhf.workers.policy import PolicyWorker
from tests.support.chaos_faults import Faults
from tests.support.fragile.bound import bound_collectives, patient, require_configured


class FragilePolicy(PolicyWorker):
    """States ``NAME-STEP-RANK``: forward, reduce, optimizer, save; each once per step or more often.

    The collective timeout of the config holds from the first step on.
    """

    def __init__(self, context: WorkerContext, config: PpoConfig) -> None:
        self.faults, self._step = Faults(Path(context.run_dir)), -1
        self._bound = config.placement.collective_timeout_seconds
        super().__init__(context, patient(config))
        require_configured(context, self.config)
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
        bound_collectives(self._bound)
        self._step = first_update // (self.config.batch.epochs * self.config.minibatches)
        return super().learn(batch, epochs, first_update, *args)

    def _minibatch(self, *args: Any, **kwargs: Any) -> Any:
        self._reach("forward")
        return super()._minibatch(*args, **kwargs)

    def save_state(self, directory: str, tag: str) -> list[str]:
        found = super().save_state(directory, tag)
        self._reach("save")
        return found

    def _reach(self, name: str) -> None:
        if self._step >= 0:
            self.faults.reach(f"{name}-{self._step}-{self.context.rank}")
