"""A profile on disk: ``profile.json``, a trace for Perfetto, a picture; and the table of the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.telemetry.console import get_console, print_table
from rlhf.telemetry.profile import IDLE, KINDS, WORKER_KINDS, StepSpans, idle_by_role, medians
from rlhf.telemetry.profile_plot import draw_profile
from rlhf.telemetry.spans import Span

PROFILE_DIR, PROFILE_FILE, TRACE_FILE, PICTURE_FILE = "profile", "profile.json", "trace.json", "profile.svg"
SCHEMA = 1
LABELS = {
    "generate": "generate",
    "score.pass": "score: pass of all roles",
    "score.models": "score: other reward models",
    "score.functions": "score: functions and servers",
    "score.rest": "score: rest",
    "learn.forward": "learn: forward",
    "learn.loss": "learn: loss",
    "learn.backward": "learn: backward",
    "learn.optimizer": "learn: optimizer",
    "learn.rest": "learn: rest",
    "critic.score": "critic of its own: score",
    "critic.learn": "critic of its own: learn",
    "sync.snapshot": "sync: pack the adapter",
    "sync.install": "sync: install",
    "sync.canary": "sync: canary",
    "checkpoint": "checkpoint",
    "other": "other",
    "driver": "driver",
    "ray.store": "Ray: object store",
    "ray.overhead": "Ray: calls and transfers",
}


def write_profile(run_dir: Path, steps: Sequence[Mapping[str, Any]], last: Sequence[StepSpans]) -> Path:
    """Writes all files; returns the picture.

    Args:
        steps: records of ``summarise``, in order, at least one.
        last: spans of the newest steps, for the trace and the picture.
    """
    folder = run_dir / PROFILE_DIR
    folder.mkdir(parents=True, exist_ok=True)
    median = medians(steps)
    profile = {
        "schema": SCHEMA,
        "lanes": sorted({lane for step in steps for lane in step["lanes"]}),
        "kinds": [kind for kind in KINDS if any(kind in step["kinds"] for step in steps)],
        "median_of_steps": [step["step"] for step in (steps[1:] or steps)],
        "median": median,
        "steps": list(steps),
    }
    _write(folder / PROFILE_FILE, json.dumps(profile, indent=1) + "\n")
    _write(folder / TRACE_FILE, json.dumps({"traceEvents": list(trace_events(last)), "displayTimeUnit": "ms"}))
    _write(folder / PICTURE_FILE, draw_profile(last[-1], median) + "\n")
    return folder / PICTURE_FILE


def trace_events(steps: Sequence[StepSpans]) -> Iterator[dict[str, Any]]:
    """Chrome's trace events: one process per role, one thread per worker, memory as counters; microseconds."""
    if not steps:
        return
    lanes = ["driver-0", *sorted({lane for step in steps for lane in step.workers})]
    roles = list(dict.fromkeys(lane.rpartition("-")[0] for lane in lanes))
    origin = steps[0].window[0]
    for number, role in enumerate(roles):
        yield {"ph": "M", "name": "process_name", "pid": number, "tid": 0, "args": {"name": role}}
        yield {"ph": "M", "name": "process_sort_index", "pid": number, "tid": 0, "args": {"sort_index": number}}
    for lane in lanes:
        role, _, rank = lane.rpartition("-")
        place = {"pid": roles.index(role), "tid": int(rank)}
        yield {"ph": "M", "name": "thread_name", **place, "args": {"name": lane}}
        found: dict[tuple[str, int], tuple[Span, int]] = {}
        for step in steps:
            for span in step.driver if lane == "driver-0" else step.workers.get(lane, []):
                found[span.name, span.start] = (span, step.step)  # a span that went on into this step is whole only now
        for span, number in found.values():
            yield from _events(span, number, origin, place)


def _events(span: Span, step: int, origin: int, place: dict[str, int]) -> Iterator[dict[str, Any]]:
    mib = {f"{name}_mib": round(size / 2**20, 1) for name, size in span.memory.items()}
    kind = WORKER_KINDS.get(span.name, span.name).partition(".")[0]
    yield {
        "ph": "X",
        "name": span.name,
        "cat": kind,
        "ts": (span.start - origin) / 1e3,
        "dur": (span.end - span.start) / 1e3,
        **place,
        "args": {"step": step, **mib},
    }
    if mib:
        counter = f"memory of {place['tid']} (MiB)"
        yield {"ph": "C", "name": counter, "ts": (span.end - origin) / 1e3, **place, "args": mib}


def profile_rows(run_dir: str | Path) -> list[tuple[str, str, str, str]]:
    """The table at the end of a run: (kind, seconds per step, share, peak memory of one process)."""
    median = json.loads((Path(run_dir) / PROFILE_DIR / PROFILE_FILE).read_text(encoding="utf-8"))["median"]
    wall = median["wall_seconds"]
    rows = [
        _row(LABELS[kind], seconds, wall, median["memory_bytes"].get(kind))
        for kind, seconds in median["kinds"].items()
        if seconds > 0
    ]
    rows.append(_row("step", wall, wall, None))
    for work, parts in median["roles"].items():
        rows += [_row(f"  of {work}, {role} by operations", seconds, wall, None) for role, seconds in parts.items()]
    for role, kinds in idle_by_role(median["lanes"]).items():
        rows.append(_row(f"  idle, a {role} worker on average", kinds.get(IDLE, 0.0), wall, None))
    return rows


def print_profile(run_dir: str | Path) -> None:
    """The table, and where the picture lies."""
    folder = Path(run_dir) / PROFILE_DIR
    columns = ("median step", "seconds", "share", "peak memory of a process")
    print_table("Profile", profile_rows(run_dir), columns)
    get_console().print(f"picture: {folder / PICTURE_FILE}", markup=False, soft_wrap=True)
    get_console().print(f"trace for ui.perfetto.dev: {folder / TRACE_FILE}", markup=False, soft_wrap=True)


def _row(label: str, seconds: float, wall: float, memory: Mapping[str, int] | None) -> tuple[str, str, str, str]:
    found = memory or {}
    size = found.get("gpu") or found.get("rss")
    unit = "MiB on the GPU" if found.get("gpu") else "MiB"
    return label, f"{seconds:.3f}", f"{seconds / wall:.1%}", f"{size / 2**20:,.0f} {unit}" if size else ""


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
