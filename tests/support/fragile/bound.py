"""The collective timeout of training ranks under faults: patient at the start, as configured from learning on.

On a busy machine ranks start seconds apart; a frozen rank is to be found within seconds.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from rlhf.config import PpoConfig
from rlhf.engine.engine import bound_collectives, collective_timeouts
from rlhf.errors import WorkerError
from rlhf.workers.context import WorkerContext
from tests.support.chaos_faults import Faults

PATIENT_SECONDS = 300.0


class Bounded:
    """Stands before a training rank: the collective timeout of the config holds from the first step on.

    Attributes:
        step: the step that is learned from; -1 before the first.
    """

    def __init__(self, context: WorkerContext, config: PpoConfig) -> None:
        self.faults, self.step = Faults(Path(context.run_dir)), -1
        self._bound = config.placement.collective_timeout_seconds
        rank: Any = super()
        rank.__init__(context, patient(config))
        require_configured(context, patient(config))

    def begin(self, config: PpoConfig, first_update: int) -> None:
        """Learning from a step begins."""
        bound_collectives(self._bound)
        self.step = first_update // (config.batch.epochs * config.minibatches)


def patient(config: PpoConfig) -> PpoConfig:
    """The config whose collectives wait at least ``PATIENT_SECONDS``."""
    seconds = max(config.placement.collective_timeout_seconds, PATIENT_SECONDS)
    placement = config.placement.model_copy(update={"collective_timeout_seconds": seconds})
    return config.model_copy(update={"placement": placement})


def require_configured(context: WorkerContext, config: PpoConfig) -> None:
    """Every group of this rank waits as long as the config says.

    Raises:
        WorkerError: one waits otherwise.
    """
    given = timedelta(seconds=config.placement.collective_timeout_seconds)
    if set(collective_timeouts()) != {given}:
        raise WorkerError(context.role, context.rank, f"groups wait {collective_timeouts()}, the config says {given}")
