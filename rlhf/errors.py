"""The one exception tree of the system: small, picklable, and every message says what to do next."""

from __future__ import annotations


class RlhfError(Exception):
    """Base of every error that this system raises on purpose.

    Attributes:
        exit_code: what a command line process ends with when this error reaches the top.
    """

    exit_code = 1


class ConfigError(RlhfError):
    """A setting is wrong; nothing has been started."""

    exit_code = 2


class AuthError(ConfigError):
    """There is no token, or it is not private: nothing is started or joined without one."""

    exit_code = 6


class DataError(RlhfError):
    """Input data does not fit; the message names file, line and field."""

    exit_code = 2


class WorkerError(RlhfError):
    """A remote worker failed, died or did not answer in time.

    Args:
        role: the worker group's role, e.g. ``"policy"`` or ``"rollout"``.
        rank: index of the worker in its group.
        cause: a description of the first cause (type and message, with the worker's own traceback where known).
        fault: ``died`` (its process or node is gone), ``silent`` (no answer in time), ``collective`` (it lost its
            peers), ``lost`` (what it was to fetch went with the process that held it), or ``error`` (its own code
            failed). All but the last may be cured by other processes.
    """

    exit_code = 3

    def __init__(self, role: str, rank: int, cause: str, fault: str = "error") -> None:
        super().__init__(role, rank, cause, fault)
        self.role = role
        self.rank = rank
        self.cause = cause
        self.fault = fault

    @property
    def is_infrastructure(self) -> bool:
        """Whether the same work may well succeed in another process."""
        return self.fault != "error"

    def __str__(self) -> str:
        return f"{self.role} worker {self.rank} failed: {self.cause}"


class RolloutFleetExhausted(WorkerError):
    """No rollout worker is left, and none may be started any more."""


class PlaceLostError(WorkerError):
    """A worker was not started: the node that had its place is gone, and no other has room for it yet."""


class AbandonedError(RlhfError):
    """A worker left a piece of work that nobody waits for any more."""

    exit_code = 3


class ScorersExhausted(WorkerError):
    """A scorer worker is gone, and no other may be started any more."""


class StoppedError(RlhfError):
    """The run was asked to stop, has committed a checkpoint, and goes on when it is started again."""

    exit_code = 3


class WeightSyncError(RlhfError):
    """An adapter is empty, stale, unchanged, mixed in version, or disagrees with the trainer."""

    exit_code = 3


class CheckpointError(RlhfError):
    """A run directory or checkpoint cannot be written, read or trusted."""

    exit_code = 4


class RunLockedError(CheckpointError):
    """Another live process works in the run directory."""

    exit_code = 7


class NumericsError(RlhfError):
    """Training met non-finite numbers or left its stated bounds."""

    exit_code = 5
