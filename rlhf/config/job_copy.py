"""The copy of a working directory in which a Ray job runs."""

from __future__ import annotations

from pathlib import Path

JOB_COPY = "working_dir_files"
"""Folder of Ray's session below which packages of jobs are unpacked."""


def in_job_copy(path: Path) -> bool:
    """Whether an absolute path lies in what Ray unpacked for a job, and removes after it."""
    return JOB_COPY in path.parts
