"""A worker works where its driver does: relative names in a config mean the same files to both.

Workers of a private runtime inherit the directory. On a joined cluster they start where their node was started, and
inside a job in their node's own copy of what was submitted.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from rlhf.config.job_copy import in_job_copy

logger = logging.getLogger(__name__)

DIRECTORY = "RLHF_DIRECTORY"
"""In the environment of a worker: where its driver runs."""


def own_directory() -> dict[str, str]:
    """What tells this process's workers where it runs; nothing within a job, whose workers have copies of it.

    Ray may remove a job's copy while the job runs: where two nodes share their temporary directory, the one that the
    driver is not on has no more use for it.
    """
    try:
        here = Path.cwd()
    except FileNotFoundError:
        return {}
    return {} if in_job_copy(here) else {DIRECTORY: str(here)}


def enter_directory() -> None:
    """Goes to where the driver runs. A host without that directory stays where it is: its log says so."""
    wanted = os.environ.get(DIRECTORY)
    if not wanted:
        return
    try:
        os.chdir(wanted)
    except OSError as error:
        logger.warning("the driver runs in %s, which is not here (%s): relative names are not found", wanted, error)
