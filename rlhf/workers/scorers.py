"""Scorer workers of a PPO run: they score while the ranks judge, and one that dies is replaced within the step.

A score depends on the response and on those that are scored with it in one pass, and on nothing that a worker keeps. So
the pieces of a step depend on its sequences alone, and whoever scores a piece gives the same scores.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf.config import RecoveryConfig
from rlhf.errors import ScorersExhausted, WorkerError
from rlhf.models.scorer import MICROBATCH
from rlhf.telemetry.events import EventLog
from rlhf.workers.ending import end_process
from rlhf.workers.group import WorkerGroup
from rlhf.workers.placement import SCORER
from rlhf.workers.policy_start import SeparateModel
from rlhf.workers.replacing import PLACE_SECONDS, replacement
from rlhf.workers.scorer import Answer

logger = logging.getLogger(__name__)


@dataclass
class Asked:
    """Scores under way.

    Attributes:
        rows_of: per worker and piece, the rows of the step.
        refs: one answer per worker.
    """

    answers: Sequence[Answer]
    rows_of: list[list[list[int]]]
    refs: list[Any]


class Scorers:
    """The workers that hold the reward models which do not stand on the policy's base; each holds all of these.

    Args:
        group: the workers as started; replaced one by one when they die.
        launch: starts a replacement of the given rank, as a group of one.
    """

    def __init__(
        self,
        group: WorkerGroup,
        launch: Callable[[int], WorkerGroup],
        models: Sequence[SeparateModel],
        recovery: RecoveryConfig,
        events: EventLog,
    ) -> None:
        self._group, self._launch, self._recovery, self._events = group, launch, recovery, events
        self.models = tuple(models)
        self.num_restarts = 0

    @property
    def actors(self) -> dict[int, Any]:
        """Actors by rank."""
        return dict(enumerate(self._group.actors))

    def submit(self, answers: Sequence[Answer]) -> Asked:
        """Starts scoring a step's responses; hand the result to ``collect``."""
        rows_of = deal([len(answer.ids) for answer in answers], len(self._group.actors))
        asked = Asked(answers, rows_of, [])
        with self._group.spans.span(f"ray.{SCORER}"):
            asked.refs = [self._ask(rank, asked) for rank in range(len(rows_of))]
        return asked

    def collect(self, asked: Asked) -> Tensor:
        """Scores of all models as (rows, models), float32, in the order of the answers.

        Consumes ``submit``'s result; waits for scorer workers; unblocked at the latest by
        ``placement.call_timeout_seconds`` without a pass through a worker's models. The pieces of a dead or silent
        worker are scored again by its replacement.

        Raises:
            ScorersExhausted: ``recovery.max_scorer_restarts`` are used up.
            RlhfError: a worker's own error: scoring elsewhere would only repeat it.
        """
        while True:
            try:
                found = self._group.wait(asked.refs)
                break
            except WorkerError as error:
                if not error.is_infrastructure:
                    raise
                self._replace(error)
                asked.refs[error.rank] = self._ask(error.rank, asked)
        scores = torch.zeros(len(asked.answers), len(self.models))
        for pieces, told in zip(asked.rows_of, found, strict=True):
            for rows, by_model in zip(pieces, told, strict=True):
                scores[rows] = torch.tensor(by_model).T
        return scores

    def close(self) -> None:
        """Ends all workers."""
        self._group.close()

    def _ask(self, rank: int, asked: Asked) -> Any:
        pieces = [[asked.answers[row] for row in rows] for rows in asked.rows_of[rank]]
        reads_tokens = [model.reads_tokens for model in self.models]
        drops = [model.drops_unwritable for model in self.models]
        return self._group.actors[rank].call.remote("score_pieces", (pieces, reads_tokens, drops), {})

    def _replace(self, error: WorkerError) -> None:
        """Starts another worker in the place of one that is lost; one that does not start counts, too."""
        rank, fault, limit = error.rank, f"{SCORER}-{error.rank}", self._recovery.max_scorer_restarts
        group, cause = self._group, error.cause.split("\n")[0][:300]
        self._events.fault_detected(fault, kind=error.fault, cause=cause)
        logger.warning("scorer worker %d is replaced: %s", rank, cause)
        end_process(group.actors[rank], group.pids[rank], group.nodes[rank])
        while self.num_restarts < limit:
            fresh = replacement(self._launch, SCORER, rank, group.run_dir, patience=PLACE_SECONDS)
            self.num_restarts += 1
            if fresh is None:
                continue
            group.actors[rank], group.pids[rank], group.nodes[rank] = fresh.actors[0], fresh.pids[0], fresh.nodes[0]
            self._events.fault_resolved(fault, restarts=self.num_restarts)
            return
        self._events.fault_fatal(fault, restarts=self.num_restarts)
        raise ScorersExhausted(
            SCORER,
            rank,
            f"{cause}; it is not replaced after {self.num_restarts} restarts (recovery.max_scorer_restarts={limit}); "
            "look into logs/scorer-*.log, then run the same command again: it goes on from the last checkpoint",
            error.fault,
        )


def deal(lengths: Sequence[int], num_workers: int) -> list[list[list[int]]]:
    """Rows per worker and piece: pieces of like lengths, the same for any number of workers, dealt out in turn.

    Args:
        lengths: tokens per row in the policy's vocabulary; in another one like rows are still like.
    """
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    pieces = [order[start : start + MICROBATCH] for start in range(0, len(order), MICROBATCH)]
    return [pieces[rank::num_workers] for rank in range(num_workers)]
