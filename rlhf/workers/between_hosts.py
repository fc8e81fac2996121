"""Whole weights on their way to other hosts: a broadcast group with one member per host.

The group is made of processes that do nothing else. So a rollout worker that dies or freezes is no member that the
others wait for, and a group that fails costs one version's speed: the workers then ask the object store for it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import RayError

from rlhf.config import PlacementConfig, RecoveryConfig
from rlhf.errors import WorkerError
from rlhf.telemetry.events import EventLog
from rlhf.telemetry.spans import Recorder
from rlhf.weights.snapshot import Header
from rlhf.workers.group import WorkerGroup
from rlhf.workers.placement import Beside
from rlhf.workers.shipped import Shipped

logger = logging.getLogger(__name__)

ROLE = "broadcast"
MAX_FAILURES = 3
"""Groups that may fail in a run; after that all versions go by the store."""


@dataclass
class BetweenHosts:
    """Brings every piece of a version to each host once.

    Attributes:
        failures: groups that have failed.
    """

    placement: PlacementConfig
    recovery: RecoveryConfig
    run_dir: str
    events: EventLog
    log_level: str = "INFO"
    spans: Recorder = field(default_factory=Recorder)
    failures: int = 0
    _nodes: tuple[str, ...] = ()
    _group: WorkerGroup | None = None
    _asked: list[tuple[list[Any], list[Any]]] = field(default_factory=list)

    def send(self, source: str, hosts: Iterable[str], pieces: Sequence[Any]) -> None:
        """Starts carrying pieces that may not exist yet; ask ``receive`` for the result.

        Args:
            source: node id of the host in whose store the pieces will lie.
            hosts: node ids of all hosts that need them.
            pieces: references to buffers.
        """
        self._asked = []
        nodes = (source, *sorted(set(hosts) - {source}))
        if len(nodes) == 1 or self.failures >= MAX_FAILURES:
            return
        try:
            group = self._of(nodes)
        except (WorkerError, RayError) as error:  # Ray's: a host that is gone by now
            self._failed(error)
            return
        self._asked = [_carry(group, piece, more=piece is not pieces[-1]) for piece in pieces]

    def receive(self, headers: Sequence[Header]) -> dict[str, list[Shipped]]:
        """The pieces by node id of each host that has them now; empty where all have to ask the store.

        Waits for: the members, at most ``recovery.sync_timeout_seconds`` per piece.
        """
        if not self._asked or self._group is None:
            return {}
        try:
            for done, _ in self._asked:
                self._group.wait(done)
        except WorkerError as error:
            self._failed(error)
            return {}
        came = zip(*(buffers for _, buffers in self._asked), strict=True)  # by member, each piece
        there = dict(zip(self._nodes, came, strict=True))
        del there[self._nodes[0]]
        return {node: list(map(Shipped, headers, buffers)) for node, buffers in there.items()}

    def close(self) -> None:
        """Ends the members."""
        if self._group is not None:
            self._group.close()
        self._group, self._nodes, self._asked = None, (), []

    def _of(self, nodes: tuple[str, ...]) -> WorkerGroup:
        if self._group is not None and self._nodes == nodes:
            return self._group
        self.close()
        words = {"cpus_per_worker": 0.0, "call_timeout_seconds": self.recovery.sync_timeout_seconds}
        self._group = WorkerGroup.launch(
            "rlhf.workers.broadcast:Broadcaster",
            ROLE,
            size=len(nodes),
            placement=self.placement.model_copy(update=words),
            run_dir=self.run_dir,
            args=(self.placement.call_timeout_seconds,),
            collective=True,
            log_level=self.log_level,
            reservation=Beside(nodes),
        )
        self._group.spans, self._nodes = self.spans, nodes
        return self._group

    def _failed(self, error: WorkerError | RayError) -> None:
        self.failures += 1
        cause = str(error).split("\n")[0][:300]
        self.events.fault_detected(ROLE, cause=cause)
        how_long = "for the rest of the run" if self.failures >= MAX_FAILURES else "this time"
        logger.warning(
            "whole weights go to other hosts by the object store %s: the broadcast group failed "
            "(it has recovery.sync_timeout_seconds=%g to answer): %s",
            how_long,
            self.recovery.sync_timeout_seconds,
            cause,
        )
        self.close()
        self.events.fault_resolved(ROLE, by="the object store")


def _carry(group: WorkerGroup, piece: Any, *, more: bool) -> tuple[list[Any], list[Any]]:
    """Starts one piece on its way; references to answers and to what came, both by member."""
    calls = [("send", (piece,)), *[("receive", (more,))] * (len(group.actors) - 1)]
    both = [group.submit_apart(rank, method, args) for rank, (method, args) in enumerate(calls)]
    return [done for done, _ in both], [buffer for _, buffer in both]
