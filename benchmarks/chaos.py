"""The fault catalogue at full length: processes killed and frozen, disks filled, bits flipped, every cut resumed.

    python benchmarks/chaos.py [--quick] [--only C01,R01] [--list]

Each section is written to benchmarks/chaos-<date>.json as soon as it is done, and added to what is there: the file
says which sections were run, when, and for how long. Ends with exit code 1 when a fault got through.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import sys
import time
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "token")
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import chaos_disk, chaos_nodes, chaos_resume, chaos_runs, chaos_tests
from benchmarks.chaos_common import Row, Section
from benchmarks.common import HERE, save
from rlhf.telemetry.console import get_console

SECTIONS: dict[str, Section] = {
    **chaos_disk.SECTIONS,
    **chaos_runs.SECTIONS,
    **chaos_nodes.SECTIONS,
    **chaos_resume.SECTIONS,
    **chaos_tests.SECTIONS,
}
COLUMNS = ("id", "fault", "injected", "detected", "recovered", "lost", "longest_seconds")


def main() -> int:
    """Runs the sections in order, the quick ones first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer faults of each kind")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, by comma")
    parser.add_argument("--list", action="store_true", help="name the sections and end")
    parser.add_argument("--markdown", metavar="FILE", help="print a result file as a table for the docs, and end")
    args = parser.parse_args()
    if args.list:
        for name, section in SECTIONS.items():
            print(f"{name:4} {(section.__doc__ or '').splitlines()[0]}")
        return 0
    if args.markdown:
        print(markdown(json.loads(Path(args.markdown).read_text(encoding="utf-8"))))
        return 0
    wanted = args.only.split(",")
    if unknown := set(wanted) - SECTIONS.keys():
        parser.error(f"no such sections: {sorted(unknown)}; there are {', '.join(SECTIONS)}")
    logging.getLogger("rlhf").setLevel(logging.ERROR)
    sections = earlier(args.quick)
    for name in wanted:
        began = time.monotonic()
        found = SECTIONS[name](args.quick)
        rows: list[Row] = []
        for rows in [found] if isinstance(found, list) else found:
            sections[name] = describe(rows, began, complete=False)
            write(sections, args.quick)
        sections[name] = describe(rows, began, complete=True)
        write(sections, args.quick)
    show(sections)
    return 0 if all(sections[name]["good"] for name in wanted) else 1


def describe(rows: list[Row], began: float, *, complete: bool) -> dict[str, Any]:
    """A section as it is written; one that was cut off stays incomplete."""
    return {
        "complete": complete,
        "seconds": round(time.monotonic() - began, 1),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "good": all(row.is_good for row in rows),
        "rows": [asdict(row) for row in rows],
    }


def file_name(quick: bool) -> str:
    """Quick results never stand in for full ones."""
    return "chaos-quick" if quick else "chaos"


def earlier(quick: bool) -> dict[str, Any]:
    """Today's sections so far."""
    path = HERE / f"{file_name(quick)}-{time.strftime('%Y-%m-%d')}.json"
    return json.loads(path.read_text(encoding="utf-8"))["sections"] if path.is_file() else {}


def write(sections: dict[str, Any], quick: bool) -> None:
    """Keeps the order of the catalogue; ``not_run`` names what is missing."""
    ordered = {name: sections[name] for name in SECTIONS if name in sections}
    missing = [name for name in SECTIONS if name not in sections]
    with redirect_stdout(io.StringIO()):  # the table at the end says it better
        save(file_name(quick), {"quick": quick, "not_run": missing, "sections": ordered})


def show(sections: dict[str, Any]) -> None:
    """One table of all rows."""
    from rich.table import Table

    table = Table(title="Faults", show_lines=False)
    for column in COLUMNS:
        table.add_column(column.replace("_", " "), justify="left" if column in COLUMNS[:2] else "right")
    for section in sections.values():
        for row in section["rows"]:
            good = Row(**row).is_good
            table.add_row(*(str(row[c]) if row[c] is not None else "" for c in COLUMNS), style="" if good else "red")
    get_console().print(table)


def markdown(record: dict[str, Any]) -> str:
    """The table of a result file, and what it does not hold."""
    lines = [f"| {' | '.join(c.replace('_', ' ') for c in COLUMNS)} |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    for section in record["sections"].values():
        for row in section["rows"]:
            lines.append("| " + " | ".join("" if row[c] is None else str(row[c]) for c in COLUMNS) + " |")
    cut = [f"{name} (cut off)" for name, found in record["sections"].items() if not found.get("complete", True)]
    missing = ", ".join([*record["not_run"], *cut])
    return "\n".join([*lines, "", f"Not run on {record['date']}: {missing}." if missing else "All sections were run."])


if __name__ == "__main__":
    raise SystemExit(main())
