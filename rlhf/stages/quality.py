"""What is odd about a run's rows, said where its owner looks: in the log and beside the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf.data.quality import QualityReport, inspect_rows
from rlhf.data.schema import Row
from rlhf.telemetry.logging import get_logger

QUALITY_FILE = "data_quality.txt"

logger = get_logger(__name__)


def report_quality(rows: Sequence[Row], run_dir: Path, name: str = QUALITY_FILE) -> QualityReport:
    """Looks for poison and slips; findings go to ``run_dir/name`` and, as one warning, to the log.

    Nothing is removed: which of two conflicting rows is wrong is not for a program to say.
    """
    report = inspect_rows(rows)
    if report.findings:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / name).write_text(report.as_table() + "\n", encoding="utf-8")
        counts = ", ".join(f"{finding.name} {len(finding.ids)}" for finding in report.findings)
        logger.warning("data quality, %d rows: %s; see %s", report.num_rows, counts, run_dir / name)
    return report
