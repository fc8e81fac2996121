"""Starting a worker in the place of one that is lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from rlhf.errors import PlaceLostError, RlhfError
from rlhf.workers.group import WorkerGroup
from rlhf.workers.ray_metrics import report_restart

logger = logging.getLogger(__name__)

PLACE_SECONDS = 10.0
"""How long a place that went with its node may take to turn up on another: Ray tells of the death first."""
ASK_SECONDS = 0.5


def replacement(
    launch: Callable[[int], WorkerGroup], role: str, rank: int, run_dir: str, *, patience: float = 0.0
) -> WorkerGroup | None:
    """A group of one; None when it did not start, which counts as a restart too.

    Args:
        patience: seconds for which a place is waited for.

    Raises:
        PlaceLostError: it has no place, so that nothing was tried.
    """
    until = time.monotonic() + patience
    try:
        fresh: WorkerGroup | None = _in_place(launch, rank, until)
    except PlaceLostError:
        raise
    except RlhfError as error:  # whatever it is: the first one has started with the same settings
        logger.warning("a replacement for %s worker %d did not start: %s", role, rank, error)
        fresh = None
    report_restart(role, run_dir=run_dir)
    return fresh


def _in_place(launch: Callable[[int], WorkerGroup], rank: int, until: float) -> WorkerGroup:
    while True:
        try:
            return launch(rank)
        except PlaceLostError:
            if time.monotonic() >= until:
                raise
            time.sleep(ASK_SECONDS)
