"""Rebuilding the training ranks of a run after faults that other processes may not have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rlhf.errors import RolloutFleetExhausted, ScorersExhausted, WorkerError
from rlhf.telemetry.events import EventLog
from rlhf.workers.ray_metrics import report_restart


@dataclass
class RankRestarts:
    """Counts restarts and puts each fault on record, with what became of it.

    Attributes:
        ranks: how many there are of each role, as their ``WorkerGroup`` calls it; all are rebuilt together.
        limit: ``recovery.max_restarts``.
    """

    stage: str
    ranks: Mapping[str, int]
    limit: int
    events: EventLog
    run_dir: Path
    count: int = 0
    _let_through: set[str] = field(default_factory=set)
    """Faults after which all is rebuilt: with the ranks, those who had them are back."""

    def again_or_raise(self, error: WorkerError) -> None:
        """Returns when the ranks may be rebuilt.

        Raises:
            WorkerError: the fault is one of the program or its data, or the restarts are used up.
        """
        if isinstance(error, RolloutFleetExhausted | ScorersExhausted):
            raise error  # they have had their restarts, and have put them on record
        fault = f"{error.role}-{error.rank}"
        self.events.fault_detected(fault, kind=error.fault, cause=error.cause[:300])
        if not error.is_infrastructure or self.count >= self.limit:
            self.events.fault_fatal(fault, restarts=self.count)
            raise error
        self.count += 1
        self._let_through.add(fault)
        for role in self.ranks:
            report_restart(role, stage=self.stage, run_dir=self.run_dir)

    def resolved(self, step: int) -> None:
        """All ranks are back, ``step`` steps being done."""
        every = {f"{role}-{rank}" for role, count in self.ranks.items() for rank in range(count)}
        for fault in sorted(every | self._let_through):
            self.events.fault_resolved(fault, step=step)
        self._let_through.clear()
