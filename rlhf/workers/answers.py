"""What a worker's call gives back: its value, or its failure as a typed error with role and rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from rlhf.errors import RlhfError, WorkerError

COLLECTIVE_KINDS = frozenset({"DistBackendError", "DistNetworkError", "DistStoreError", "DistError"})
COLLECTIVE_WORDS = ("gloo", "nccl", "connection closed by peer", "connection reset", "broken pipe", "tcpstore")


@dataclass(frozen=True)
class RemoteFailure:
    """A failure as data: exceptions that cross a process boundary lose their type when they cannot be pickled."""

    kind: str
    message: str
    trace: str
    error: RlhfError | None = None


def result_of(role: str, rank: int, ref: Any) -> Any:
    """The answer behind a reference that is ready.

    Raises:
        WorkerError: the worker died, does not hand over its answer, or failed.
        RlhfError: what the worker raised, when it is one of ours.
    """
    try:
        value = ray.get(ref, timeout=30)
    except RayActorError as error:
        raise WorkerError(role, rank, f"{type(error).__name__}: {error}", "died") from None
    except GetTimeoutError as error:
        raise WorkerError(role, rank, f"{type(error).__name__}: {error}", "silent") from None
    except RayTaskError as error:
        raise WorkerError(role, rank, f"{type(error).__name__}: {error}") from None
    if isinstance(value, RemoteFailure):
        if value.error is not None and not isinstance(value.error, WorkerError):
            raise value.error
        told = value.kind == "RuntimeError" and any(word in value.message.lower() for word in COLLECTIVE_WORDS)
        lost = told or value.kind in COLLECTIVE_KINDS
        cause = f"{value.kind}: {value.message}\n{value.trace}"
        raise WorkerError(role, rank, cause, "collective" if lost else "error")
    return value
