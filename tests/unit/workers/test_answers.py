"""What Ray raises when a worker, its node or its data is gone becomes a fault that a run knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnschedulableError,
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    OwnerDiedError,
    RayError,
    RayTaskError,
)

from rlhf.errors import DataError, WorkerError
from rlhf.workers import answers, recorded, stalls
from rlhf.workers.answers import RemoteFailure, failure_of, result_of
from rlhf.workers.group import WorkerGroup, _Host

LOST = ObjectLostError("a" * 56, None, "")
OWNER = OwnerDiedError("a" * 56, None, "")
MEMORY = OutOfMemoryError("killed: the node is low on memory")
FAILED = RayTaskError("call", "Traceback ...\nValueError: no", ValueError("no"))


class Actor:
    """Stands where a handle stands: every call gives a reference."""

    def __getattr__(self, name: str) -> Any:
        return self

    def remote(self, *args: Any) -> str:
        return "reference"


@pytest.fixture
def ray_raises(monkeypatch: pytest.MonkeyPatch) -> Any:
    def let(error: Exception) -> None:
        def get(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(ray, "get", get)

    return let


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (ActorDiedError(), "died"),
        (MEMORY, "died"),
        (NodeDiedError("its node is gone"), "died"),
        (ActorUnschedulableError("its node is gone"), "died"),
        (LOST, "died"),
        (OWNER, "died"),
        (GetTimeoutError("not here in time"), "silent"),
        (FAILED, "error"),
        (FAILED.as_instanceof_cause(), "error"),
    ],
)
def test_whatever_ray_raises_is_a_typed_error(error: RayError, fault: str, ray_raises: Any) -> None:
    ray_raises(error)
    with pytest.raises(WorkerError) as caught:
        result_of("rollout", 3, "reference")
    assert (caught.value.role, caught.value.rank, caught.value.fault) == ("rollout", 3, fault)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (LOST, "lost"),
        (OWNER, "lost"),
        (OutOfDiskError("no space left"), "died"),
        (ObjectStoreFullError("full"), "died"),
        (GetTimeoutError("not here in time"), "silent"),
        (FAILED.as_instanceof_cause(), "error"),
        (RuntimeError("[gloo] Connection closed by peer"), "collective"),
        (RuntimeError("shapes differ"), "error"),
        (ZeroDivisionError("division by zero"), "error"),
    ],
)
def test_a_worker_tells_what_fault_its_exception_is(
    error: Exception, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    told = _Host._guard(fail)
    assert isinstance(told, RemoteFailure)
    monkeypatch.setattr(ray, "get", lambda *_, **__: told)
    with pytest.raises(WorkerError) as caught:
        result_of("policy", 1, "reference")
    assert caught.value.fault == fault and type(error).__name__ in caught.value.cause


def test_errors_of_our_own_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        raise DataError("rows.jsonl line 3")
    except DataError as error:
        told = failure_of(error)
    monkeypatch.setattr(answers.ray, "get", lambda *_, **__: told)
    with pytest.raises(DataError, match="line 3"):
        result_of("sft", 0, "reference")


@pytest.mark.parametrize("error", [MEMORY, LOST, ActorDiedError(), GetTimeoutError("frozen")])
def test_questions_beside_a_call_never_end_a_run(
    error: RayError, ray_raises: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events, stacks, silence and spans are asked of workers that may be gone; their own call says what happened."""
    ray_raises(error)
    monkeypatch.setattr(ray, "wait", lambda refs, **_: (refs, []))
    actor = Actor()
    group = WorkerGroup("sft", 1.0, actors=[actor])  # type: ignore[list-item]
    assert group._forward_events(lambda event: None) is False
    assert stalls.silence_of(actor) == float("inf")
    assert stalls.abandon(actor) is False
    stalls.write_stacks("sft", [actor], [1], str(tmp_path), "why")
    (written,) = (tmp_path / "stalls").iterdir()
    assert type(error).__name__ in written.read_text()
    assert recorded.fetch_spans({0: actor}) == {}
