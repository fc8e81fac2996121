"""One Ray runtime for a whole test session, and actors that serve one run after the other."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from rlhf.config import PlacementConfig
from rlhf.workers.group import WorkerGroup
from rlhf.workers.runtime import ray_runtime


@pytest.fixture(scope="session")
def ray_session() -> Iterator[dict[str, float]]:
    """A private runtime with room for every test's actors."""
    with ray_runtime(PlacementConfig(), num_workers=20) as resources:
        yield resources


SEATS = {"sft": "policy", "reward": "policy"}
"""Roles that never run at the same time, and whose processes they share: a process costs seconds to start."""


class Borrowed(WorkerGroup):
    """A group whose processes live on after ``close``, and whose answers are kept."""

    answers: list[tuple[str, list[Any]]]

    def scatter(self, method: str, args_by_rank: Any, **kwargs: Any) -> list[Any]:
        found = super().scatter(method, args_by_rank, **kwargs)
        self.answers.append((method, found))
        return found

    def wait(self, refs: Any, **kwargs: Any) -> list[Any]:
        found = super().wait(refs, **kwargs)
        self.answers.append((f"waited for {self.role}", found))
        return found

    def close(self) -> None:
        """Leaves the actors to the next run."""


@dataclass
class ActorPool:
    """Stands where ``WorkerGroup`` stands in a recipe: real groups, each started once per (seat, size).

    Attributes:
        substitutes: worker names that another class replaces, to inject a fault.
        answers: (method, results of all ranks) of the last run's calls.
    """

    groups: dict[tuple[str, int, int], WorkerGroup] = field(default_factory=dict)
    substitutes: dict[str, str] = field(default_factory=dict)
    answers: list[tuple[str, list[Any]]] = field(default_factory=list)

    def launch(self, worker: str, role: str, *, size: int, args: tuple, kwargs: Any = None, **rest: Any) -> WorkerGroup:
        worker = self.substitutes.get(worker, worker)
        place = (SEATS.get(role, role), size, rest.get("first_rank", 0))
        found = self.groups.get(place)
        if found is None:
            found = WorkerGroup.launch(
                "tests.support.workers:Reusable", role, size=size, args=(worker, *args), kwargs=kwargs, **rest
            )
            self.groups[place] = found
        else:
            found.call("rebuild", role, worker, args, kwargs or {}, rest["run_dir"])
        lent = Borrowed(role, found.timeout_seconds, found.actors, found.pids, found.nodes)
        lent.answers = self.answers
        return lent

    @contextmanager
    def lent_to(self, recipe: Any) -> Iterator[None]:
        """While open, a recipe's module starts no processes of its own."""
        self.substitutes, self.answers = {}, []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recipe, "WorkerGroup", self)
            yield

    def close(self) -> None:
        for group in self.groups.values():
            group.close()


@pytest.fixture(scope="session")
def actor_pool(ray_session: dict[str, float]) -> Iterator[ActorPool]:
    """Actors shared by the PPO tests of a session."""
    pool = ActorPool()
    yield pool
    pool.close()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def gone(pids: list[int], within: float = 10.0) -> bool:
    deadline = time.monotonic() + within
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(alive(pid) for pid in pids)
