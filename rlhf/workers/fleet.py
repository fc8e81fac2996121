"""Rollout workers that may die: work goes to those that live, and a replacement draws nothing before its adapter.

Every piece of work is a fixed list of tasks with seeds of their own, so whoever draws it draws the same tokens.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from rlhf.config import RecoveryConfig, SamplingConfig
from rlhf.errors import AbandonedError, PlaceLostError, RolloutFleetExhausted, WeightSyncError, WorkerError
from rlhf.rollout.protocol import PromptTask, Rollout
from rlhf.telemetry.events import EventLog
from rlhf.weights.parts import sha_of
from rlhf.workers.answers import result_of
from rlhf.workers.ending import end_process
from rlhf.workers.group import WorkerGroup
from rlhf.workers.health import Health, HealthRecord
from rlhf.workers.replacing import PLACE_SECONDS, replacement
from rlhf.workers.shipped import Shipped
from rlhf.workers.stalls import abandon, silence_of
from rlhf.workers.under_way import Batch, Piece

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
WAIT = "ray.rollout"
"""Span of the time that the driver spends on the fleet."""
Launch = Callable[[int], WorkerGroup]
"""Starts one worker of the given rank, as a group of one."""


class RolloutFleet:
    """The rollout workers of a run.

    Args:
        group: the workers as started; replaced one by one when they die.
        launch: starts a replacement.
    """

    def __init__(self, group: WorkerGroup, launch: Launch, recovery: RecoveryConfig, events: EventLog) -> None:
        self._group, self._launch, self._recovery, self._events = group, launch, recovery, events
        self.health = [HealthRecord(rank) for rank in range(len(group.actors))]
        self._published: tuple[Sequence[Shipped], Mapping[str, Sequence[Shipped]], str] | None = None
        """Parts, the same by node id, and their hash."""
        self._loaded: tuple[str | None] | None = None
        """In their place: the directory of an adapter, or None for the bare base."""
        self._put_off: set[int] = set()
        """Ranks whose replacement did not start for this version, while others can do their work."""
        self.num_restarts = 0

    @property
    def size(self) -> int:
        """Workers as configured, dead ones included."""
        return len(self.health)

    @property
    def living(self) -> dict[int, Any]:
        """Actors by rank, those left out that are known to be dead."""
        return {r.rank: self._group.actors[r.rank] for r in self.health if r.is_alive}

    @property
    def hosts(self) -> set[str]:
        """Node ids of the living workers."""
        return {self._group.nodes[rank] for rank in self.living}

    def install(self, parts: Sequence[Shipped], nearer: Mapping[str, Sequence[Shipped]] | None = None) -> None:
        """Gives every worker a version and reads its hash back; dead workers are replaced first.

        Args:
            parts: an adapter is one, a whole policy may be several.
            nearer: the same parts by node id, for workers on nodes that have them already.

        Raises:
            WeightSyncError: a worker holds something else afterwards.
            RolloutFleetExhausted: none is left.
            PlaceLostError: none is left, and the nodes are gone: all roles have to take places anew.
        """
        self._begin_version()
        self._published, self._loaded = (tuple(parts), dict(nearer or {}), sha_of([p.header for p in parts])), None
        with self._group.spans.span(WAIT):
            self._hand_out()

    def load(self, adapter: Path | None) -> None:
        """Lets every worker read a saved adapter, or none, as version 0; dead workers are replaced first.

        Raises:
            RolloutFleetExhausted: none is left.
            PlaceLostError: none is left, and the nodes are gone.
        """
        self._begin_version()
        self._published, self._loaded = None, (None if adapter is None else str(adapter),)
        with self._group.spans.span(WAIT):
            self._hand_out()

    def heal(self) -> None:
        """Replaces dead workers and gives them the current adapter, as far as the budget goes."""
        while any(r.now is Health.DEAD for r in self.health):
            if not self._restart_dead():
                return
            self._give([r.rank for r in self.health if r.now is Health.STALE])

    def submit(self, tasks: Sequence[PromptTask], sampling: SamplingConfig, version: int) -> Batch:
        """Starts drawing one response per task; hand the result to ``collect``.

        The pieces depend on the configured number of workers and on nothing else.
        """
        share_of = -(-len(tasks) // self.size)
        pieces = [list(tasks[i : i + share_of]) for i in range(0, len(tasks), share_of)]
        batch = Batch(pieces, sampling, version)
        with self._group.spans.span(WAIT):
            for index in range(len(pieces)):
                self._start(batch, index, preferred=index % self.size)
        return batch

    def collect(self, batch: Batch) -> list[Rollout]:
        """Waits for all pieces; pieces of dead, frozen or lost workers are drawn again by others.

        Consumes ``submit``'s batch; waits for rollout workers; unblocked at the latest by
        ``recovery.generate_timeout_seconds`` of silence and, where it is set, by twice
        ``recovery.rollout_deadline_seconds``, per piece and attempt. Both count from this call, from the piece's start,
        and from the worker's last answer: what it did while nobody waited is no delay.

        Raises:
            RolloutFleetExhausted: no worker is left.
            RlhfError: a worker's own error: drawing the piece elsewhere would only repeat it.
        """
        with self._group.spans.span(WAIT):
            self._collect(batch)
        return batch.rollouts

    def _collect(self, batch: Batch) -> None:
        batch.restart_clocks()
        while batch.running:
            ready, _ = ray.wait(list(batch.running), num_returns=1, timeout=POLL_SECONDS)
            for ref in ready:
                piece = batch.running.pop(ref)
                try:
                    batch.done[piece.index] = result_of("rollout", piece.rank, ref)
                    batch.restart_clocks(piece.rank)
                    self._abandon(batch, piece.index)
                except AbandonedError:  # it was told to leave the piece before this one
                    self._again(batch, [piece])
                except WorkerError as error:
                    if not error.is_infrastructure:
                        raise
                    if piece.life == self.health[piece.rank].restarts:
                        self._lose(piece.rank, error, time.monotonic() - piece.began)
                    self._again(batch, [piece])
            self._end_overdue(batch)
            self._meet_deadline(batch)

    def call(self, method: str, *args: Any) -> dict[int, Any]:
        """Calls every living worker; answers by rank. Workers that die of it are replaced, and answer again."""
        found: dict[int, Any] = {}
        while missing := [r.rank for r in self.health if r.is_alive and r.rank not in found]:
            with self._group.spans.span(WAIT):
                found.update(self._ask(method, dict.fromkeys(missing, args)))
            self.heal()
        return found

    def close(self) -> None:
        """Ends all workers."""
        self._group.close()

    def _begin_version(self) -> None:
        for record in self.health:
            if record.now is Health.HEALTHY:
                record.move(Health.STALE)
        self._put_off.clear()

    def _hand_out(self) -> None:
        self._restart_dead()
        self._give([r.rank for r in self.health if r.now is Health.STALE])
        self.heal()

    def _start(self, batch: Batch, index: int, *, preferred: int | None = None) -> None:
        live = [r.rank for r in self.health if r.now is Health.HEALTHY]
        if not live:
            self.heal()
            live = [r.rank for r in self.health if r.now is Health.HEALTHY]
        if preferred in live:
            rank = preferred
        else:
            load = {rank: sum(piece.rank == rank for piece in batch.running.values()) for rank in live}
            rank = min(live, key=lambda r: (load[r], r))
        ref: Any = self._group.actors[rank].call.remote(
            "generate", (batch.pieces[index], batch.sampling, batch.version), {}
        )
        now = time.monotonic()
        batch.running[ref] = Piece(index, rank, self.health[rank].restarts, now, now)

    def _again(self, batch: Batch, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            if batch.drawers(piece.index):
                continue  # another worker is at it already
            batch.redispatched += 1
            self._start(batch, piece.index)
            logger.warning("piece %d is drawn again after %.1f s", piece.index, time.monotonic() - piece.asked)

    def _end_overdue(self, batch: Batch) -> None:
        limit, now = self._recovery.generate_timeout_seconds, time.monotonic()
        for piece in _unanswered({r: p for r, p in batch.running.items() if now - p.began > limit}):
            if piece not in batch.running.values():
                continue  # dealt with a moment ago, together with another of its worker
            silence = silence_of(self._group.actors[piece.rank])
            if silence < limit:
                batch.allow_silence(piece.rank, silence)  # slow, and getting on
                continue
            cause = f"no rollouts and no progress within {limit:g} s (recovery.generate_timeout_seconds)"
            self._end(batch, piece, cause, now - piece.began)

    def _meet_deadline(self, batch: Batch) -> None:
        """A late piece goes to a worker with nothing left to do as well; after twice the deadline its worker is ended.

        Both would draw the same tokens, so the first answer is the answer.
        """
        limit, now = self._recovery.rollout_deadline_seconds, time.monotonic()
        if limit is None:
            return
        for piece in _unanswered({r: p for r, p in batch.running.items() if now - p.asked > limit}):
            if piece not in batch.running.values():
                continue
            if now - piece.asked > 2 * limit:
                cause = f"its work was not done within 2 x {limit:g} s (recovery.rollout_deadline_seconds)"
                self._end(batch, piece, cause, now - piece.asked)
                continue
            busy = {other.rank for other in batch.running.values()}
            idle = [r.rank for r in self.health if r.now is Health.HEALTHY and r.rank not in busy]
            if idle and len(batch.drawers(piece.index)) == 1:
                batch.redispatched += 1
                self._start(batch, piece.index, preferred=idle[0])
                waited = round(now - piece.asked, 3)
                self._events.write(
                    "redispatched", piece=piece.index, late=piece.rank, to=idle[0], waited_seconds=waited
                )
                logger.warning(
                    "piece %d of rollout worker %d is late: %d draws it too", piece.index, piece.rank, idle[0]
                )

    def _end(self, batch: Batch, piece: Piece, cause: str, waited: float) -> None:
        """Ends the worker of a piece, and has all its pieces drawn by others."""
        same = batch.of_worker(piece.rank, piece.life)
        for ref in same:
            del batch.running[ref]
        if same and piece.life == self.health[piece.rank].restarts:
            self._lose(piece.rank, WorkerError("rollout", piece.rank, cause, "silent"), waited)
        self._again(batch, list(same.values()))

    def _abandon(self, batch: Batch, index: int) -> None:
        """Nobody waits any more for those who were slower with a piece: they are free at their next forward pass."""
        for ref, piece in batch.drawers(index).items():
            del batch.running[ref]
            is_gone = piece.life != self.health[piece.rank].restarts
            if is_gone or batch.of_worker(piece.rank, piece.life) or abandon(self._group.actors[piece.rank]):
                continue
            cause = "late with its work, and no answer to the request to leave it"
            self._lose(piece.rank, WorkerError("rollout", piece.rank, cause, "silent"), time.monotonic() - piece.asked)

    def _lose(self, rank: int, error: WorkerError, waited: float | None = None) -> None:
        record = self.health[rank]
        if not record.is_alive:
            return
        self._events.fault_detected(
            f"rollout-{rank}",
            detect_seconds=None if waited is None else round(waited, 3),
            cause=error.cause.split("\n")[0][:300],
            kind=error.fault,
        )
        logger.warning("rollout worker %d is replaced: %s", rank, error.cause.split("\n")[0])
        record.move(Health.DEAD)
        end_process(self._group.actors[rank], self._group.pids[rank], self._group.nodes[rank])

    def _restart_dead(self) -> bool:
        """Starts replacements; False when nothing more can be started and the survivors carry on.

        A start that fails may take ``placement.start_timeout_seconds``, and the survivors wait for it: while there are
        any, it is tried once per version. What finds no place is no start.
        """
        started, lost = False, None
        for record in self.health:
            try:
                while self._may_start(record):
                    alone = not any(other.is_alive for other in self.health)
                    started |= self._start_again(record, PLACE_SECONDS if alone and lost is None else 0.0)
            except PlaceLostError as error:
                lost = error
                self._put_off.add(record.rank)
                logger.warning("rollout worker %d is not replaced for now: %s", record.rank, error.cause)
        if not any(record.is_alive for record in self.health):
            if lost is not None:
                raise lost
            for record in self.health:
                self._events.fault_fatal(f"rollout-{record.rank}")
            raise RolloutFleetExhausted(
                "rollout",
                0,
                f"RolloutFleetExhausted: no rollout worker is left after {self.num_restarts} restarts "
                f"(recovery.max_rollout_restarts={self._recovery.max_rollout_restarts}); look into logs/rollout-*.log, "
                "then run the same command again: a training goes on from its last checkpoint",
                "died",
            )
        return started

    def _may_start(self, record: HealthRecord) -> bool:
        waits = record.rank in self._put_off and any(other.is_alive for other in self.health)
        has_budget = self.num_restarts < self._recovery.max_rollout_restarts
        return record.now is Health.DEAD and has_budget and not waits

    def _start_again(self, record: HealthRecord, patience: float) -> bool:
        """Starts a replacement; False when it did not start."""
        rank = record.rank
        fresh = replacement(self._launch, "rollout", rank, self._group.run_dir, patience=patience)
        self.num_restarts += 1
        record.move(Health.RESTARTING)
        if fresh is None:
            record.move(Health.DEAD)
            self._put_off.add(rank)
            return False
        self._group.actors[rank], self._group.pids[rank] = fresh.actors[0], fresh.pids[0]
        self._group.nodes[rank] = fresh.nodes[0]
        record.move(Health.STALE)
        return True

    def _give(self, ranks: Sequence[int]) -> None:
        taken: Iterable[int] = []
        if self._published is not None:
            taken = self._install(ranks, *self._published)
        elif self._loaded is not None:
            taken = self._ask("load", dict.fromkeys(ranks, self._loaded))
        for rank in taken:
            self.health[rank].move(Health.HEALTHY)
            self._events.fault_resolved(f"rollout-{rank}", restarts=self.health[rank].restarts)

    def _install(
        self, ranks: Sequence[int], parts: Sequence[Shipped], nearer: Mapping[str, Sequence[Shipped]], wanted: str
    ) -> list[int]:
        """Ranks that have taken a version; those that died of it are missing."""
        found = self._ask("install", {rank: tuple(nearer.get(self._group.nodes[rank], parts)) for rank in ranks})
        for rank, (sha, _) in found.items():
            if sha != wanted:
                raise WeightSyncError(f"rollout worker {rank} holds {sha[:12]}, published was {wanted[:12]}")
        return list(found)

    def _ask(self, method: str, args: Mapping[int, tuple]) -> dict[int, Any]:
        """Answers of the workers that have arguments; those that die or stay silent are marked dead and missing.

        Raises:
            RlhfError: a worker's own error.
            WorkerError: a version is lost with the rank that held it: the ranks are to be rebuilt.
        """
        began, limit = time.monotonic(), self._recovery.sync_timeout_seconds
        refs: dict[Any, int] = {self._group.actors[rank].call.remote(method, a, {}): rank for rank, a in args.items()}
        found: dict[int, Any] = {}
        while refs:
            left = began + limit - time.monotonic()
            ready, _ = ray.wait(list(refs), num_returns=1, timeout=max(0.0, left))
            for ref in ready:
                rank = refs.pop(ref)
                try:
                    found[rank] = result_of("rollout", rank, ref)
                except WorkerError as error:
                    if not error.is_infrastructure or error.fault == "lost":  # a replacement could not fetch it either
                        raise
                    self._lose(rank, error, time.monotonic() - began)
            if not ready:
                for rank in refs.values():
                    cause = f"no answer to {method} within {limit:g} s (recovery.sync_timeout_seconds)"
                    self._lose(rank, WorkerError("rollout", rank, cause, "silent"), time.monotonic() - began)
                break
        return found


def _unanswered(late: dict[Any, Piece]) -> list[Piece]:
    """Those of the pieces whose answers do not lie here unread."""
    answered, _ = ray.wait(list(late), num_returns=len(late), timeout=0) if late else ([], [])
    return [piece for ref, piece in late.items() if ref not in answered]
