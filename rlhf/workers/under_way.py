"""Generation under way: pieces of work, and which rollout workers are at them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

from rlhf.config import SamplingConfig
from rlhf.rollout.protocol import PromptTask, Rollout


@dataclass(frozen=True)
class Piece:
    """A piece of work at a worker.

    Attributes:
        life: which process of this rank has it: the death of an earlier one says nothing about its replacement.
        began: since when the worker's silence counts.
        asked: since when the deadline counts: it could have been at this piece since then.
    """

    index: int
    rank: int
    life: int
    began: float
    asked: float


@dataclass
class Batch:
    """Generation under way: pieces of work, who draws each, and what has come back.

    Attributes:
        version: the adapter version that every piece must be drawn with.
    """

    pieces: list[list[PromptTask]]
    sampling: SamplingConfig
    version: int
    done: dict[int, list[Rollout]] = field(default_factory=dict)
    running: dict[Any, Piece] = field(default_factory=dict)
    redispatched: int = 0

    def restart_clocks(self, rank: int | None = None) -> None:
        """Counts waiting anew, for the pieces of one worker or for all."""
        now = time.monotonic()
        for ref, piece in self.running.items():
            if rank in (None, piece.rank):
                self.running[ref] = replace(piece, began=now, asked=now)

    def allow_silence(self, rank: int, silence: float) -> None:
        """A worker has got on with its work ``silence`` seconds ago; its pieces are as late as before."""
        for ref, piece in self.running.items():
            if piece.rank == rank:
                self.running[ref] = replace(piece, began=time.monotonic() - silence)

    def drawers(self, index: int) -> dict[Any, Piece]:
        """Who is at a piece now; two, when the first is late."""
        return {ref: piece for ref, piece in self.running.items() if piece.index == index}

    def of_worker(self, rank: int, life: int) -> dict[Any, Piece]:
        """What one process has to do."""
        return {ref: piece for ref, piece in self.running.items() if (piece.rank, piece.life) == (rank, life)}

    @property
    def rollouts(self) -> list[Rollout]:
        """In the order of the tasks."""
        return [rollout for index in range(len(self.pieces)) for rollout in self.done[index]]
