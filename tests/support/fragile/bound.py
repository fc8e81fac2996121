"""The collective timeout of training ranks under faults: patient at the start, as configured from learning on.

On a busy machine ranks start seconds apart; a frozen rank is to be found within seconds.
"""

from __future__ import annotations

from datetime import timedelta

import torch

from rlhf.config import PpoConfig
from rlhf.engine.engine import collective_timeouts
from rlhf.errors import WorkerError
from rlhf.workers.context import WorkerContext

PATIENT_SECONDS = 300.0


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


def bound_collectives(seconds: float) -> None:
    """Lets every group wait this long from now on."""
    for group in torch.distributed.distributed_c10d._world.pg_map:
        torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)
