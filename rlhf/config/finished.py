"""What the files of a run directory say about its end, without anything that trains."""

from __future__ import annotations

import json
from pathlib import Path

RUN_FILE = "run.json"
"""Written last of all by stages that train."""
SUMMARY_FILE = "summary.json"
UNTRAINED = ("sample", "evaluate")
"""Stages that leave no model."""


def is_finished(path: Path) -> bool:
    """Whether a run ended well there: trainings write ``run.json`` last of all, the other stages their summary."""
    if (path / RUN_FILE).is_file():
        return True
    try:
        summary = json.loads((path / SUMMARY_FILE).read_text(encoding="utf-8"))
        return isinstance(summary, dict) and summary.get("stage") in UNTRAINED
    except (OSError, ValueError, RecursionError):
        return False
