"""What a worker's call gives back: its value, or its failure as a typed error with role and rank."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import (
    GetTimeoutError,
    LocalRayletDiedError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
)

from rlhf.errors import RlhfError, WorkerError

COLLECTIVE_KINDS = frozenset({"DistBackendError", "DistNetworkError", "DistStoreError", "DistError"})
COLLECTIVE_WORDS = ("gloo", "nccl", "connection closed by peer", "connection reset", "broken pipe", "tcpstore")

HOST_FAILS = (LocalRayletDiedError, ObjectStoreFullError, OutOfDiskError, OutOfMemoryError)
"""A worker cannot take what is there: others may, and one in its place elsewhere."""


@dataclass(frozen=True)
class RemoteFailure:
    """A failure as data: exceptions that cross a process boundary lose their type when they cannot be pickled.

    Attributes:
        fault: as ``WorkerError`` has it.
        error: the exception itself, when it is one of ours.
    """

    kind: str
    message: str
    trace: str
    fault: str = "error"
    error: RlhfError | None = None


def failure_of(error: Exception) -> RemoteFailure:
    """An exception that a worker is handling; what fault it is can be told only here, where its type is known."""
    own = error if isinstance(error, RlhfError) else None
    return RemoteFailure(type(error).__name__, str(error), traceback.format_exc(limit=-6), _fault_within(error), own)


def result_of(role: str, rank: int, ref: Any) -> Any:
    """The answer behind a reference that is ready.

    Raises:
        WorkerError: the worker died, does not hand over its answer, or failed.
        RlhfError: what the worker raised, when it is one of ours.
    """
    try:
        value = ray.get(ref, timeout=30)
    except RayTaskError as error:
        raise WorkerError(role, rank, f"{type(error).__name__}: {error}") from None
    except GetTimeoutError as error:
        raise WorkerError(role, rank, f"{type(error).__name__}: {error}", "silent") from None
    except RayError as error:  # it is dead or out of memory, or its answer went with its node
        raise WorkerError(role, rank, f"{type(error).__name__}: {error}", "died") from None
    if isinstance(value, RemoteFailure):
        if value.error is not None and not isinstance(value.error, WorkerError):
            raise value.error
        raise WorkerError(role, rank, f"{value.kind}: {value.message}\n{value.trace}", value.fault)
    return value


def of_the_host(role: str, rank: int, error: RlhfError) -> WorkerError:
    """A failure to start what has been started before, with the same settings: other processes may fare better."""
    if not isinstance(error, WorkerError):
        return WorkerError(role, rank, f"{type(error).__name__}: {error}", "died")
    return error if error.is_infrastructure else WorkerError(error.role, error.rank, error.cause, "died")


def _fault_within(error: Exception) -> str:
    """What fault an exception inside a worker is."""
    if isinstance(error, RayError) and not isinstance(error, RayTaskError):  # it waited for another process's object
        if isinstance(error, GetTimeoutError):
            return "silent"
        return "died" if isinstance(error, HOST_FAILS) else "lost"
    kind = type(error).__name__
    told = kind == "RuntimeError" and any(word in str(error).lower() for word in COLLECTIVE_WORDS)
    return "collective" if told or kind in COLLECTIVE_KINDS else "error"
