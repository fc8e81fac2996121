"""What every benchmark does at its end: one dated JSON file and one JSON line."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from rlhf.telemetry.environment import git_sha, machine, versions

HERE = Path(__file__).parent


def save(name: str, result: dict[str, Any]) -> Path:
    """Writes ``benchmarks/NAME-DATE.json`` with the command, machine and versions; prints the result as one line."""
    command = " ".join(["python", *(arg.removeprefix(f"{HERE.parent}/") for arg in sys.argv)])
    record = {
        "benchmark": name,
        "date": time.strftime("%Y-%m-%d"),
        "command": command,
        "git_sha": git_sha(HERE),
        "machine": machine(),
        "versions": versions(),
        **result,
    }
    path = HERE / f"{name}-{record['date']}.json"
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result, ensure_ascii=False))
    return path
