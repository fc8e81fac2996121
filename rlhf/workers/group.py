"""A group of equal workers as Ray actors: call all ranks, scatter, gather, and name the first failure."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from rlhf.config import PlacementConfig
from rlhf.errors import AbandonedError, RlhfError, WorkerError
from rlhf.telemetry.logging import setup_logging
from rlhf.telemetry.spans import Recorded, Recorder
from rlhf.workers.answers import RemoteFailure, failure_of, of_the_host, result_of
from rlhf.workers.context import WorkerContext
from rlhf.workers.directory import enter_directory
from rlhf.workers.ending import end_process
from rlhf.workers.lean import lean_class
from rlhf.workers.placement import Ask, Beside, Reservation, require_places, reserve
from rlhf.workers.runtime import (
    base_environment,
    check_gpu,
    free_port,
    node_address,
    node_interfaces,
    worker_environment,
)
from rlhf.workers.stalls import STACK_SECONDS, silence_of, write_stacks

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
FETCH_SECONDS = 300.0
"""How long a worker waits for a shared argument to reach its node."""
PEER_SECONDS = 2.0
"""How long a lost connection waits for the death that explains it."""
EventHandler = Callable[[dict[str, Any]], None]


class _Host:
    """The actor around one plain worker object."""

    def __init__(self, environment: dict[str, str]) -> None:
        os.environ.update(environment)
        self._worker: Any = None
        self._context: WorkerContext | None = None
        self._spans = Recorder()

    def where(self, via: str | None) -> tuple[str, int, str, int, dict[str, str]]:
        """(node address, a free port, node id, pid, variables that name the network interface)."""
        return node_address(), free_port(), ray.get_runtime_context().get_node_id(), os.getpid(), node_interfaces(via)

    def build(
        self, cls: type | str, context: WorkerContext, environment: dict[str, str], args: tuple, kwargs: dict
    ) -> Any:
        os.environ.update(environment)
        self._context, self._spans = context, context.spans
        context.last_beat = time.monotonic()  # the driver's clock may be another host's

        def construct() -> None:
            setup_logging(context.run_dir, context.role, context.rank, level=context.log_level)
            enter_directory()
            made = lean_class(cls)
            check_gpu()
            self._worker = made(context, *_fetch(args, self._spans), **kwargs)

        return self._guard(construct)

    def call(self, method: str, args: tuple, kwargs: dict) -> Any:
        if self._context is not None:
            self._context.abandoned = False
        with self._spans.span(method):
            return self._guard(lambda: getattr(self._worker, method)(*_fetch(args, self._spans), **kwargs))

    @ray.method(num_returns=2)
    def call_apart(self, method: str, args: tuple, kwargs: dict) -> tuple[Any, Any]:
        """As ``call``; an answer that comes ``apart`` is two objects, and who needs the small one gets that alone."""
        found = self.call(method, args, kwargs)
        return found.apart() if hasattr(found, "apart") else (found, None)

    @ray.method(concurrency_group="control")
    def sees(self, path: str) -> bool:
        """Whether a file is there for this process."""
        return Path(path).is_file()

    @ray.method(concurrency_group="control")
    def record_spans(self, on: bool) -> None:
        """Records what every call does from now on, or no longer."""
        from rlhf.workers.footprint import Footprint

        self._spans.switch(Footprint() if on else None)

    @ray.method(concurrency_group="control")
    def spans(self) -> Recorded:
        """Spans since the last call; answers while ``call`` is busy."""
        return self._spans.take()

    @ray.method(concurrency_group="control")
    def ask_stop(self) -> None:
        """The worker sees it between two steps."""
        if self._context is not None:
            self._context.stop_requested = True

    @ray.method(concurrency_group="control")
    def abandon(self) -> None:
        """The running call ends at its next sign of progress."""
        if self._context is not None:
            self._context.abandoned = True

    @ray.method(concurrency_group="control")
    def stacks(self) -> str:
        """Where every thread of the process stands now; answers while ``call`` is busy."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        parts = [
            f"thread {names.get(ident, ident)}\n{''.join(traceback.format_stack(frame))}"
            for ident, frame in sys._current_frames().items()
        ]
        return "\n".join(parts)

    @ray.method(concurrency_group="control")
    def silence(self) -> float:
        """Seconds since the worker's last sign of progress; answers while ``call`` is busy."""
        return float("inf") if self._context is None else time.monotonic() - self._context.last_beat

    @ray.method(concurrency_group="control")
    def drain(self) -> list[dict[str, Any]]:
        """Events since the last call; answers while ``call`` is busy."""
        if self._context is None:
            return []
        events = self._context.events
        return [events.popleft() for _ in range(len(events))]

    @staticmethod
    def _guard(action: Callable[[], Any]) -> Any:
        try:
            return action()
        except AbandonedError as error:
            logging.getLogger("rlhf.worker").info("left its work: %s", error)
            return RemoteFailure("AbandonedError", str(error), "", error=error)
        except Exception as error:
            logging.getLogger("rlhf.worker").exception("worker failed")
            return failure_of(error)


def _fetch(args: tuple, spans: Recorder) -> tuple:
    """Arguments with shared ones taken out of the object store."""
    if not any(isinstance(a, ray.ObjectRef) or hasattr(a, "fetch") for a in args):
        return args
    with spans.span("fetch"):
        return tuple(map(_fetched, args))


def _fetched(argument: Any) -> Any:
    if isinstance(argument, ray.ObjectRef):
        return ray.get(argument, timeout=FETCH_SECONDS)
    return argument.fetch(FETCH_SECONDS) if hasattr(argument, "fetch") else argument


def share(value: Any) -> Any:
    """Puts a value into the object store once; hand the reference to any number of workers as an argument."""
    return ray.put(value)


@dataclass
class WorkerGroup:
    """Handles of all ranks of one role.

    Every call waits at most ``call_timeout_seconds`` for a sign of life, which is an event that a rank reports or a
    pass through its model (``WorkerContext.beat``): a call may take hours, silence may not. The first failed, dead or
    silent rank becomes a ``WorkerError`` (or the typed error that the worker raised).

    Attributes:
        on_poll: called about twice a second while a call with events runs.
        spans: gets the time that the caller spends on calls.
    """

    role: str
    timeout_seconds: float
    actors: list[ActorHandle] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    reservation: Reservation | None = None
    run_dir: str = ""
    on_poll: Callable[[], None] | None = None
    spans: Recorder = field(default_factory=Recorder)

    @classmethod
    def launch(
        cls,
        worker: type | str,
        role: str,
        *,
        size: int,
        placement: PlacementConfig,
        run_dir: str,
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
        gpus_per_worker: float = 0.0,
        collective: bool = False,
        first_rank: int = 0,
        log_level: str = "INFO",
        reservation: Reservation | Beside | None = None,
        again: bool = False,
    ) -> WorkerGroup:
        """Starts ``size`` actors and builds ``worker(context, *args, **kwargs)`` in each.

        Args:
            worker: a class, or ``"module:Class"`` so that only the actors import what it needs.
            collective: the ranks form one process group (their environment names rank 0's address and a free port).
            reservation: places taken for several roles at once; by default the group takes its own.
            again: it had such places before (``reserve``) and was built there: any failure is one of the host.
            first_rank: rank of the first worker, for one that stands in for another.

        Raises:
            PlaceLostError: a place of ``reservation`` went with its node; nothing is left running.
            WorkerError: a worker did not start.
        """
        ranks = range(first_rank, first_rank + size)
        require_places(reservation, role, ranks)
        use_gpu, shares_gpu = gpus_per_worker > 0, 0 < gpus_per_worker < 1
        environment = base_environment(threads=placement.threads_per_worker, use_gpu=use_gpu, shares_gpu=shares_gpu)
        # Ray's overloads do not know the option
        actor_class: Any = ray.remote(concurrency_groups={"control": 1})  # type: ignore[call-overload]
        options = {
            "num_cpus": placement.cpus_per_worker,
            "num_gpus": gpus_per_worker,
            "max_restarts": 0,
            "max_task_retries": 0,
            "runtime_env": {"env_vars": environment},
        }
        group = cls(role, placement.call_timeout_seconds, run_dir=run_dir)
        if reservation is None:
            ask = Ask.of(role, size, placement, gpus_per_worker)
            group.reservation = reserve(placement, [ask], again=again)
            seats = group.reservation.seats(role)
        else:
            seats = reservation.seats(role)[first_rank : first_rank + size]
        group.actors = [actor_class(_Host).options(**options, **seat).remote(environment) for seat in seats]
        try:
            bound: Any = {"timeout": placement.start_timeout_seconds, "bound": "start_timeout_seconds"}
            places = group._gather([a.where.remote(placement.network_interface) for a in group.actors], **bound)
            group.pids, group.nodes = [p[3] for p in places], [p[2] for p in places]
            address, port = places[0][0], places[0][1]
            across = len(set(group.nodes)) > 1
            for rank, place in enumerate(places):
                logger.info("%s %d on %s, pid %d", role, rank, place[0], place[3])
            refs: list[Any] = []
            for rank, actor in enumerate(group.actors):
                node = group.nodes[rank]
                env = worker_environment(
                    rank,
                    size,
                    group.nodes[:rank].count(node),
                    group.nodes.count(node),
                    address,
                    port,
                    threads=placement.threads_per_worker,
                    use_gpu=use_gpu,
                    interfaces=places[rank][4] if across or placement.network_interface else {},
                )
                context = WorkerContext(role, first_rank + rank, size, run_dir, log_level)
                refs.append(actor.build.remote(worker, context, env if collective else {}, args, kwargs or {}))
            group._gather(refs, **bound)
        except BaseException as error:
            group.close()
            if isinstance(error, WorkerError):
                require_places(reservation, role, ranks)  # it may have been lost while the worker was started
            if again and isinstance(error, RlhfError):
                raise of_the_host(role, first_rank, error) from error
            raise
        return group

    def call(self, method: str, *args: Any, on_event: EventHandler | None = None, **kwargs: Any) -> list[Any]:
        """Calls every rank with the same arguments; results in rank order."""
        return self.scatter(method, [args] * len(self.actors), on_event=on_event, **kwargs)

    def scatter(
        self,
        method: str,
        args_by_rank: Sequence[tuple],
        *,
        on_event: EventHandler | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Calls rank i with ``args_by_rank[i]``; results in rank order."""
        return self.wait(self.submit(method, args_by_rank, **kwargs), on_event=on_event)

    def submit(self, method: str, args_by_rank: Sequence[tuple], **kwargs: Any) -> list[Any]:
        """Starts a call on every rank without waiting; hand the result to ``wait``."""
        with self.spans.span(f"ray.{self.role}"):
            return [a.call.remote(method, args, kwargs) for a, args in zip(self.actors, args_by_rank, strict=True)]

    def submit_apart(self, rank: int, method: str, args: tuple) -> tuple[Any, Any]:
        """Starts a call on one rank, without waiting, whose answer comes ``apart`` in two objects.

        Returns:
            A reference to hand to ``wait``, and a reference to the other object.
        """
        with self.spans.span(f"ray.{self.role}"):
            both: Any = self.actors[rank].call_apart.remote(method, args, {})
        return both[0], both[1]

    def wait(self, refs: list[Any], *, on_event: EventHandler | None = None) -> list[Any]:
        """Results of ``submit`` in rank order, or the first failure."""
        with self.spans.span(f"ray.{self.role}"):
            return self._gather(refs, self.timeout_seconds, on_event)

    def call_host(self, method: str, *args: Any) -> list[Any]:
        """Calls the process around every worker, busy or not; results in rank order."""
        return self._gather([getattr(actor, method).remote(*args) for actor in self.actors], STACK_SECONDS * 6)

    def ask_stop(self) -> None:
        """Asks every rank to commit a checkpoint and end after the running step."""
        for actor in self.actors:
            actor.ask_stop.remote()

    def close(self) -> None:
        """Ends the actors' processes."""
        for rank, actor in enumerate(self.actors):
            known = rank < len(self.pids)
            end_process(actor, self.pids[rank] if known else None, self.nodes[rank] if known else None)
        self.actors = []
        if self.reservation is not None:
            self.reservation.close()

    def _gather(
        self, refs: list[Any], timeout: float, on_event: EventHandler | None = None, bound: str = "call_timeout_seconds"
    ) -> list[Any]:
        deadline = time.monotonic() + timeout
        pending, results = list(refs), {}
        while pending:
            wait = POLL_SECONDS if on_event else max(0.0, deadline - time.monotonic())
            done, pending = ray.wait(pending, num_returns=1, timeout=wait)
            for ref in done:
                try:
                    results[ref] = result_of(self.role, refs.index(ref), ref)
                except WorkerError as error:
                    found = self._first_cause(error, refs)
                    if found.fault == "collective":
                        self.dump_stacks(str(found))
                    raise found from None
            if self.on_poll is not None:
                self.on_poll()
            if on_event and self._forward_events(on_event):
                deadline = time.monotonic() + timeout  # a call that reports may take hours; silence may not
            if pending and time.monotonic() > deadline:
                waiting = [refs.index(ref) for ref in pending]
                silence = min(silence_of(self.actors[rank]) for rank in waiting)
                if silence < timeout:
                    deadline = time.monotonic() + timeout - silence
                    continue
                rank = waiting[0]
                cause = f"no answer and no progress within {timeout:.0f} s (placement.{bound})"
                self.dump_stacks(f"{self.role} worker {rank}: {cause}")
                raise WorkerError(self.role, rank, cause, "silent")
        return [results[ref] for ref in refs]

    def dump_stacks(self, reason: str) -> None:
        """Writes where every rank stands into ``stalls/`` of the run directory."""
        write_stacks(self.role, self.actors, self.pids, self.run_dir, reason)

    def _first_cause(self, error: WorkerError, refs: list[Any]) -> WorkerError:
        """A rank that lost its peers is not the cause: waits a little for the death that was."""
        deadline = time.monotonic() + PEER_SECONDS
        while error.fault == "collective" and time.monotonic() < deadline:
            for rank, ref in enumerate(refs):
                if rank == error.rank or not ray.wait([ref], timeout=0.1)[0]:
                    continue
                try:
                    result_of(self.role, rank, ref)
                except WorkerError as other:
                    if other.fault == "died":
                        return other
                except RlhfError:
                    continue
        return error

    def _forward_events(self, on_event: EventHandler) -> bool:
        found = False
        for actor in self.actors:
            try:
                events: list[dict[str, Any]] = ray.get(actor.drain.remote(), timeout=5)
                for event in events:
                    found = True
                    on_event(event)
            except RayError:
                continue  # a dead or busy rank shows itself through its own call
        return found
