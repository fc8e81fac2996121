"""Where a step's time and memory went: from the spans of all processes to kinds that add up to the wall time.

Two views of the same spans. *The step*: the driver's time is divided; while it waits for workers, the time is that of
the worker which was busy for longest within the wait, and what is left of the wait is Ray's. *A lane*: a worker's time
is divided into what it did and idle. Both add up to the step's wall time exactly.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rlhf.telemetry.spans import Span

DRIVER, IDLE, OVERHEAD, STORE, OTHER = "driver", "idle", "ray.overhead", "ray.store", "other"
STEP, WAIT = "step", "ray."
"""Spans of the driver: the step itself, and waits, named for the role that is waited for (``ray.policy``)."""
WORKER_KINDS = {
    "generate": "generate",
    "judge": "score.rest",
    "judge.pass": "score.pass",
    "score_pieces": "score.models",
    "learn": "learn.rest",
    "learn.forward": "learn.forward",
    "learn.loss": "learn.loss",
    "learn.backward": "learn.backward",
    "learn.optimizer": "learn.optimizer",
    "snapshot": "sync.snapshot",
    "install": "sync.install",
    "canary": "sync.canary",
    "save": "checkpoint",
    "save_state": "checkpoint",
    "fetch": STORE,
}
DRIVER_KINDS = {"scores": "score.functions", "put": STORE, "checkpoint": "checkpoint"}
KINDS = ("generate", "score.pass", "score.models", "score.functions", "score.rest", "learn.forward", "learn.loss",
         "learn.backward", "learn.optimizer", "learn.rest", "critic.score", "critic.learn", "sync.snapshot",
         "sync.install", "sync.canary", "checkpoint", OTHER, DRIVER, STORE, OVERHEAD, IDLE)  # fmt: skip
APART = {"critic": {"score": "critic.score", "learn": "critic.learn"}}
"""Roles in workers of their own whose work has the spans of another role: in the step it has kinds of its own."""
ACTS = ("act", "judge", "learn", "share", "checkpoint")


class Piece(NamedTuple):
    """A stretch of one lane that belongs to one kind; nanoseconds since 1970."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class StepSpans:
    """What was recorded of one step.

    Attributes:
        driver: spans of the driver, of which one is ``step``.
        workers: spans by lane, ``ROLE-RANK``.
        shares: ``learn``, ``optimizer`` and ``score``: part of each role in their work.
        pss: bytes by lane at the step's end.
    """

    step: int
    driver: list[Span]
    workers: dict[str, list[Span]]
    shares: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    pss: Mapping[str, int] = field(default_factory=dict)

    @property
    def window(self) -> tuple[int, int]:
        """Start and end of the step."""
        whole = next(span for span in self.driver if span.name == STEP)
        return whole.start, whole.end


def lane_pieces(spans: Iterable[Span], start: int, end: int, kinds: Mapping[str, str] | None) -> list[Piece]:
    """Disjoint pieces of properly nested spans: the innermost one names a moment.

    Args:
        kinds: kind by span name, others being ``other``; None keeps the names.
    """
    inside = [span for span in spans if span.end > start and span.start < end]
    inside.sort(key=lambda span: (span.start, -span.end))
    pieces: list[Piece] = []
    around: list[Span] = []
    at = start

    def until(moment: int, span: Span) -> None:
        nonlocal at
        moment = min(moment, end)
        if moment > at:
            kind = span.name if kinds is None else kinds.get(span.name, OTHER)
            if pieces and pieces[-1].kind == kind and pieces[-1].end == at:
                pieces[-1] = Piece(pieces[-1].start, moment, kind)
            else:
                pieces.append(Piece(at, moment, kind))
            at = moment

    for span in inside:
        while around and around[-1].end <= span.start:
            until(around[-1].end, around.pop())
        if around:
            until(span.start, around[-1])
        at = max(at, span.start)
        around.append(span)
    while around:
        until(around[-1].end, around.pop())
    return pieces


def step_pieces(step: StepSpans, lanes: Mapping[str, list[Piece]]) -> list[Piece]:
    """The step's wall time without a gap, each moment with the kind that it was spent on."""
    start, end = step.window
    found: list[Piece] = []
    for piece in lane_pieces(step.driver, start, end, None):
        if not piece.kind.startswith(WAIT):
            found.append(Piece(piece.start, piece.end, DRIVER_KINDS.get(piece.kind, DRIVER)))
            continue
        role, at = piece.kind.removeprefix(WAIT), piece.start
        inside = [_within(own, piece.start, piece.end) for lane, own in lanes.items() if lane.startswith(f"{role}-")]
        for one in max(inside, key=_busy, default=[]):
            if one.start > at:
                found.append(Piece(at, one.start, OVERHEAD))
            found.append(one._replace(kind=APART.get(role, {}).get(one.kind.partition(".")[0], one.kind)))
            at = one.end
        if piece.end > at:
            found.append(Piece(at, piece.end, OVERHEAD))
    return found


def summarise(step: StepSpans) -> dict[str, Any]:
    """One step's record: seconds of the step by kind, by act and by lane, memory, and the split by role."""
    start, end = step.window
    lanes = {lane: lane_pieces(spans, start, end, WORKER_KINDS) for lane, spans in sorted(step.workers.items())}
    pieces = step_pieces(step, lanes)
    kinds = _seconds(pieces)
    return {
        "step": step.step,
        "start_ns": start,
        "wall_seconds": (end - start) / 1e9,
        "kinds": kinds,
        "acts": {span.name: _act(pieces, span) for span in step.driver if span.name in ACTS},
        "lanes": {lane: _with_idle(own, end - start) for lane, own in lanes.items()},
        "roles": _by_role(kinds, step.shares),
        "memory_bytes": _memory(step),
        "pss_bytes": dict(step.pss),
    }


def medians(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over the steps without the first one, in which memory and caches are touched first."""
    counted = steps[1:] or steps
    names = ("wall_seconds", "kinds", "acts", "lanes", "roles", "memory_bytes", "pss_bytes")
    return {name: _median([step[name] for step in counted]) for name in names}


def idle_by_role(lanes: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Seconds by kind of a role's workers, on average."""
    of_role: dict[str, list[Mapping[str, float]]] = defaultdict(list)
    for lane, kinds in lanes.items():
        of_role[lane.rpartition("-")[0]].append(kinds)
    return {
        role: {kind: sum(one.get(kind, 0.0) for one in found) / len(found) for kind in _ordered(*found)}
        for role, found in of_role.items()
    }


def _within(pieces: Iterable[Piece], start: int, end: int) -> list[Piece]:
    return [Piece(max(p.start, start), min(p.end, end), p.kind) for p in pieces if p.end > start and p.start < end]


def _busy(pieces: Iterable[Piece]) -> int:
    return sum(piece.end - piece.start for piece in pieces)


def _seconds(pieces: Iterable[Piece]) -> dict[str, float]:
    total: dict[str, int] = defaultdict(int)
    for piece in pieces:
        total[piece.kind] += piece.end - piece.start
    return {kind: total[kind] / 1e9 for kind in _ordered(total)}


def _ordered(*found: Iterable[str]) -> list[str]:
    present = {kind for one in found for kind in one}
    return [kind for kind in KINDS if kind in present]


def _with_idle(pieces: Sequence[Piece], wall: int) -> dict[str, float]:
    return {**_seconds(pieces), IDLE: (wall - _busy(pieces)) / 1e9}


def _act(pieces: Iterable[Piece], act: Span) -> dict[str, float]:
    """An act's wall time: the slowest workers', the driver's own with its score functions, and Ray's."""
    found = _seconds(_within(pieces, act.start, act.end))
    ray = found.get(STORE, 0.0) + found.get(OVERHEAD, 0.0)
    driver = found.get(DRIVER, 0.0) + found.get("score.functions", 0.0)
    return {
        "seconds": (act.end - act.start) / 1e9,
        "workers": sum(found.values()) - ray - driver,
        "driver": driver,
        "ray": ray,
    }


def _by_role(kinds: Mapping[str, float], shares: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Seconds of learning and of the judging pass, split by counted work: the roles share one pass."""
    update = kinds.get("learn.optimizer", 0.0)
    passes = sum(seconds for kind, seconds in kinds.items() if kind.startswith("learn.")) - update
    by_weights, judged = shares.get("optimizer", {}), kinds.get("score.pass", 0.0)
    return {
        "learn": {role: passes * part + update * by_weights[role] for role, part in shares.get("learn", {}).items()},
        "score": {role: judged * part for role, part in shares.get("score", {}).items()},
    }


def _memory(step: StepSpans) -> dict[str, dict[str, int]]:
    """By kind, the most that one process had."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    named = [(WORKER_KINDS.get(s.name, OTHER), s) for spans in step.workers.values() for s in spans]
    named += [(DRIVER_KINDS.get(s.name, DRIVER), s) for s in step.driver if not s.name.startswith(WAIT)]
    for kind, span in named:
        for name, size in span.memory.items():
            found[kind][name] = max(size, found[kind].get(name, 0))
    return {kind: found[kind] for kind in _ordered(found)}


def _median(values: Sequence[Any]) -> Any:
    """Of numbers, or of trees of numbers; what is missing in one tree counts as 0."""
    if not isinstance(values[0], Mapping):
        return statistics.median(values)
    names = dict.fromkeys(name for value in values for name in value)
    return {name: _median([value.get(name, _zero(values, name)) for value in values]) for name in names}


def _zero(values: Sequence[Mapping[str, Any]], name: str) -> Any:
    known = next(value[name] for value in values if name in value)
    return {} if isinstance(known, Mapping) else 0.0
