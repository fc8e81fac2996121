"""Training ranks of policy and critic that begin each call only when the other has begun its own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rlhf.errors import DataError
from rlhf.workers.context import WorkerContext
from rlhf.workers.critic import CriticWorker
from rlhf.workers.policy import PolicyWorker

PATIENCE_SECONDS = 60.0


class Meeting:
    """Two roles of one rank each, by files in the run directory; calls of a name are counted in each process."""

    context: WorkerContext

    def meet(self, name: str) -> None:
        """Waits until both are here; with one called after the other's end, nobody ever comes.

        Raises:
            DataError: nobody came.
        """
        calls: dict[str, int] = self.__dict__.setdefault("_calls", {})
        calls[name] = calls.get(name, 0) + 1
        place = Path(self.context.run_dir) / "meetings"
        place.mkdir(exist_ok=True)
        (place / f"{name}-{calls[name]}-{self.context.role}").touch()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(list(place.glob(f"{name}-{calls[name]}-*"))) < 2:
            if time.monotonic() > deadline:
                raise DataError(f"{self.context.role} was alone in {name}")
            time.sleep(0.005)


class MeetingPolicy(Meeting, PolicyWorker):
    """The policy's rank."""

    def judge(self, *args: Any, **kwargs: Any) -> Any:
        self.meet("judge")
        return super().judge(*args, **kwargs)

    def learn(self, *args: Any, **kwargs: Any) -> Any:
        self.meet("learn")
        return super().learn(*args, **kwargs)


class MeetingCritic(Meeting, CriticWorker):
    """The critic's rank."""

    def judge(self, *args: Any, **kwargs: Any) -> Any:
        self.meet("judge")
        return super().judge(*args, **kwargs)

    def learn(self, *args: Any, **kwargs: Any) -> Any:
        self.meet("learn")
        return super().learn(*args, **kwargs)
