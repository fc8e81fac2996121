"""The report of a run: what is in it, and how it is read from a run directory.

`rlhf.telemetry.report_html` turns it into one self-contained page.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.config.finished import SUMMARY_FILE
from rlhf.errors import DataError
from rlhf.telemetry.curves import CURVES, Plot, stage_plots
from rlhf.telemetry.headline import Card, headline_cards, length_rule, summary_sentence, vote_figures
from rlhf.telemetry.metrics import METRICS_FILE, read_metrics
from rlhf.telemetry.runs import RunView, check_run

REPORT_FILE = "report.html"
SAMPLES_FILE = "samples.jsonl"
_CONFIG_FILES = ("config.yaml", "resolved_config.yaml", "config.json")


@dataclass(frozen=True)
class Sample:
    """One prompt and what each model answers; `scores` are the judge's, by the same names."""

    prompt: str
    answers: Mapping[str, str]
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Everything that a report can show. A part that is empty leaves its section out.

    Attributes:
        run_name: heading of the page.
        lead: a sentence or two in plain words: what came out.
        facts: short (name, value) pairs for the head: seed, revision, time.
        cards: headline figures.
        plots: curves by stage key, in the order of the stages.
        samples: side-by-side answers.
        annotators: one mapping per annotator, e.g. name, votes, reliability, agreement; floats in 0..1 get a
            small meter.
        seconds: time by stage key; ``"total"`` is shown last.
        next_commands: (command, what it does).
        config: the resolved config as text.
        versions: package versions.
    """

    run_name: str
    lead: str = ""
    facts: Sequence[tuple[str, str]] = ()
    cards: Sequence[Card] = ()
    plots: Mapping[str, Sequence[Plot]] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    annotators: Sequence[Mapping[str, Any]] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    next_commands: Sequence[tuple[str, str]] = ()
    config: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def write_report(path: str | Path, report: Report) -> Path:
    """Writes the report as one HTML file that needs nothing else; replaces the file in one move.

    Returns:
        The file.
    """
    from rlhf.telemetry.report_html import render_report

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    partial.write_text(render_report(report), encoding="utf-8", errors="backslashreplace")
    partial.replace(path)
    return path


def write_run_report(run_dir: str | Path, next_commands: Sequence[tuple[str, str]] = ()) -> Path:
    """Reads a run directory and writes its ``report.html``.

    Raises:
        DataError: there is no run, or a file of it is not what it should be.
    """
    return write_report(check_run(run_dir) / REPORT_FILE, report_from_run(run_dir, next_commands))


def report_from_run(run_dir: str | Path, next_commands: Sequence[tuple[str, str]] = ()) -> Report:
    """Gathers a report from ``summary.json``, ``metrics.jsonl``, ``samples.jsonl`` and the resolved config.

    Every file may be missing: the report shows what is there. Lines of ``samples.jsonl`` are
    ``{"prompt", "answers": {model: text}, "scores": {model: number}}``; the summary may hold ``annotators``
    (a list of mappings) and ``next_commands`` (a list of [command, what it does]).

    Raises:
        DataError: the directory does not exist, or a file in it is not what it should be.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise DataError(f"{run_dir} is not a directory: give the directory of a run")
    summary = _read_summary(run_dir / SUMMARY_FILE)
    records = read_metrics(run_dir) if (run_dir / METRICS_FILE).exists() else []
    commands = next_commands or [tuple(pair) for pair in summary.get("next_commands", ())]
    return Report(
        run_name=str(summary.get("run_name") or run_dir.resolve().name),
        lead=summary_sentence(summary),
        facts=_facts(summary),
        cards=headline_cards(summary),
        plots=_plots(records, summary),
        samples=_read_samples(run_dir / SAMPLES_FILE),
        annotators=[row for row in summary.get("annotators") or () if isinstance(row, Mapping)],
        seconds=_seconds(summary),
        next_commands=[(str(c[0]), str(c[1])) for c in commands if len(c) == 2],
        config=next((p.read_text("utf-8") for name in _CONFIG_FILES if (p := run_dir / name).is_file()), ""),
        versions={str(k): str(v) for k, v in (summary.get("versions") or {}).items()},
    )


def _read_summary(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        summary = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(
            f"{path} is not JSON ({error}): write it again with `rlhf {_stage(path.parent)} --fresh`, or remove it for "
            "a report without it"
        ) from error
    if not isinstance(summary, dict):
        raise DataError(f"{path} must hold a JSON object")
    return summary


def _stage(run_dir: Path) -> str:
    """The command that made a run; a quickstart as a whole keeps no config."""
    return RunView(run_dir).stage if (run_dir / "config.json").is_file() else "quickstart"


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    sha = str(summary.get("git_sha") or "")
    short = sha[:10] + ("-dirty" if sha.endswith("-dirty") else "")
    engine = summary.get("engine")
    engines = engine.values() if isinstance(engine, Mapping) else [engine] if engine else []
    found = [
        ("seed", summary.get("seed")),
        ("revision", short),
        ("engine", ", ".join(dict.fromkeys(str(e) for e in engines))),
        ("ranks", summary.get("num_ranks")),
        ("finished", summary.get("finished_at")),
    ]
    return [(name, str(value)) for name, value in found if value not in (None, "")]


def _plots(records: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> dict[str, list[Plot]]:
    seen = dict.fromkeys(str(record.get("stage")) for record in records)
    # The known stages in the order in which they are run, then others as they came.
    order = [stage for stage in CURVES if stage in seen] + [stage for stage in seen if stage not in CURVES]
    limits = _numbers({"ceiling": vote_figures(summary)[1], "kl_limit": summary.get("kl_limit")})
    if (rule := length_rule(summary)) is not None:
        limits["length_baseline"] = rule[1]
    plots = {stage: stage_plots(stage, [r for r in records if r.get("stage") == stage], limits) for stage in order}
    return {stage: found for stage, found in plots.items() if found}


def _seconds(summary: Mapping[str, Any]) -> dict[str, float]:
    """Time by stage; a stage of its own has one figure."""
    seconds = summary.get("seconds")
    return _numbers(seconds if isinstance(seconds, Mapping) else {str(summary.get("stage") or "total"): seconds})


def _read_samples(path: Path) -> list[Sample]:
    if not path.exists():
        return []
    samples = []
    for number, line in enumerate(path.read_text("utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            answers = {str(k): str(v) for k, v in row["answers"].items()}
            samples.append(Sample(_prompt_text(row["prompt"]), answers, _numbers(row.get("scores"))))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}, line {number}: expected prompt, answers and scores ({type(error).__name__}: {error})"
            ) from error
    return samples


def _prompt_text(prompt: Any) -> str:
    """A prompt as text; of a chat, every message with its role unless there is only one."""
    if not isinstance(prompt, list):
        return str(prompt)
    messages = [(str(m["role"]), str(m["content"])) for m in prompt]
    return messages[0][1] if len(messages) == 1 else "\n".join(f"{role}: {text}" for role, text in messages)


def _numbers(values: Any) -> dict[str, float]:
    if not isinstance(values, Mapping):
        return {}
    return {
        str(key): float(value)
        for key, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
