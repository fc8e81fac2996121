"""The health of one rollout worker: no way from dead to healthy but through a fresh adapter."""

from __future__ import annotations

from enum import Enum

from rlhf.errors import WorkerError


class Health(Enum):
    """What a rollout worker may be asked for."""

    STALE = "stale"
    """It runs, and holds no adapter or an old one: it may only be given one."""
    HEALTHY = "healthy"
    """It holds the current adapter, its sha256 read back: it may draw."""
    DEAD = "dead"
    """Its process is gone or is being killed."""
    RESTARTING = "restarting"
    """A new process is being built in its place."""


ALLOWED = frozenset(
    {
        (Health.STALE, Health.HEALTHY),
        (Health.HEALTHY, Health.STALE),
        (Health.STALE, Health.DEAD),
        (Health.HEALTHY, Health.DEAD),
        (Health.RESTARTING, Health.DEAD),
        (Health.DEAD, Health.RESTARTING),
        (Health.RESTARTING, Health.STALE),
    }
)


class HealthRecord:
    """Keeps a worker to the allowed transitions."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.now = Health.STALE
        self.restarts = 0

    def move(self, to: Health) -> None:
        """Goes to another state.

        Raises:
            WorkerError: the transition is not allowed; a fault of this program, never of a worker.
        """
        if to is self.now:
            return
        if (self.now, to) not in ALLOWED:
            raise WorkerError("rollout", self.rank, f"health cannot go from {self.now.value} to {to.value}")
        self.restarts += to is Health.RESTARTING
        self.now = to

    @property
    def is_alive(self) -> bool:
        """Whether there is a process to talk to."""
        return self.now in (Health.STALE, Health.HEALTHY)
