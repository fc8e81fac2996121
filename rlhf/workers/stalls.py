"""What is written while a call stalls: where every thread of every worker stands, and what happened last."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from rlhf.telemetry.events import EVENTS_FILE

logger = logging.getLogger(__name__)

STACK_SECONDS = 5.0
LAST_EVENTS = 20


def write_stacks(role: str, actors: Sequence[Any], pids: Sequence[int], run_dir: str, reason: str) -> None:
    """Writes ``stalls/TIME-ROLE.txt`` into the run directory: a stall is explained while it lasts."""
    if not run_dir or not actors:
        return
    parts = [reason]
    refs: list[Any] = [actor.stacks.remote() for actor in actors]
    for rank, ref in enumerate(refs):
        try:
            text = ray.get(ref, timeout=STACK_SECONDS)
        except RayError as error:
            text = f"{type(error).__name__}: no answer; the process is gone or frozen"
        pid = pids[rank] if rank < len(pids) else "?"
        parts.append(f"=== {role} {rank}, pid {pid}\n{text}")
    parts.append("=== last events\n" + _last_lines(Path(run_dir) / EVENTS_FILE))
    directory = Path(run_dir) / "stalls"
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{role}.txt"
    target.write_text("\n\n".join(parts), encoding="utf-8")
    logger.error("stalled: stacks of all %s workers are in %s", role, target)


def silence_of(actor: Any) -> float:
    """Seconds since a worker last got on with its work, by its own clock; infinite when it does not answer."""
    try:
        return float(ray.get(actor.silence.remote(), timeout=STACK_SECONDS / 2))
    except RayError:
        return float("inf")


def abandon(actor: Any) -> bool:
    """Lets a worker leave its running call at the next sign of progress; False when it does not answer."""
    try:
        ray.get(actor.abandon.remote(), timeout=STACK_SECONDS / 2)
    except RayError:
        return False
    return True


def _last_lines(path: Path) -> str:
    if not path.is_file():
        return "none"
    return "\n".join(path.read_text(encoding="utf-8").splitlines()[-LAST_EVENTS:])
