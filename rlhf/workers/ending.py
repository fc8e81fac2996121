"""How a worker's process ends, also one that no longer answers."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import ray
from ray.actor import ActorHandle


def end_process(actor: ActorHandle, pid: int | None, node: str | None) -> None:
    """Kills an actor; one that is frozen on this node does not answer Ray and is killed by its process id."""
    ray.kill(actor, no_restart=True)
    if pid is not None and node == ray.get_runtime_context().get_node_id():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
