"""Starting a worker in the place of one that is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable

from rlhf.errors import PlaceLostError, WorkerError
from rlhf.workers.group import WorkerGroup
from rlhf.workers.ray_metrics import report_restart

logger = logging.getLogger(__name__)


def replacement(launch: Callable[[int], WorkerGroup], role: str, rank: int, run_dir: str) -> WorkerGroup | None:
    """A group of one; None when it did not start, which counts as a restart too.

    Raises:
        PlaceLostError: it has no place, so that nothing was tried.
    """
    try:
        fresh: WorkerGroup | None = launch(rank)
    except PlaceLostError:
        raise
    except WorkerError as error:
        logger.warning("a replacement for %s worker %d did not start: %s", role, rank, error)
        fresh = None
    report_restart(role, run_dir=run_dir)
    return fresh
