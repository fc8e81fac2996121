"""The board's pieces as HTML. Every text of a run, a model or a file name passes through ``preference_ui.render``."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from preference_ui.render import direction, plain_html, visible
from rlhf.telemetry.console import format_figure
from rlhf.telemetry.curves import CURVES, STAGE_NAMES, stage_plots
from rlhf.telemetry.plots import Series, line_plot
from rlhf.telemetry.progress import format_seconds
from rlhf.telemetry.runs import Event, RunView, sparkline

HEADLINES = {
    "ppo": (("score_mean", "score"), ("kl", "KL"), ("entropy", "entropy")),
    "reward": (("accuracy", "accuracy"), ("eval_accuracy", "held out"), ("loss", "loss")),
    "dpo": (("eval_accuracy", "held out"), ("eval_reward_margin", "margin"), ("loss", "loss")),
}
TRAINING = (("loss", "loss"), ("eval_loss", "held out"))
MAX_COMPARED = 6
MAX_TEXT_CHARACTERS = 20_000
# matplotlib's settings belong to the whole process: one picture at a time
_DRAWING = threading.Lock()


def safe(text: object) -> str:
    """Any text as HTML that can only be read."""
    return visible(str(text)[:MAX_TEXT_CHARACTERS])


def runs_table(views: Sequence[tuple[str, RunView]]) -> str:
    """All runs, one row each, with a link to the run's own page."""
    if not views:
        return '<p class="rlhf hint">No runs here yet: a run appears as soon as it has written its first figures.</p>'
    heads = ("run", "stage", "state", "step", "figures", "over the run", "last written")
    rows = "".join(_row(name, view) for name, view in views)
    head = "".join(f'<th scope="col">{h}</th>' for h in heads)
    table = f'<table class="runs list"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="rlhf board-scroll">{table}</div>'


def _row(name: str, view: RunView) -> str:
    keys = HEADLINES.get(view.stage, TRAINING)
    figures = [f"{label} {format_figure(value)}" for key, label in keys if (value := view.last(key)) is not None]
    spark = next((s for key, _ in keys if (s := sparkline([v for _, v in view.series(key)], 24))), "")
    cells = (
        f'<a href="/board/?run={quote(name, safe="")}">{safe(name)}</a>',
        safe(STAGE_NAMES.get(view.stage, view.stage or "–")),
        state_badge(view),
        _step(view),
        safe(", ".join(figures) or "–"),
        f'<span class="spark" aria-hidden="true">{spark}</span>',
        _ago(view),
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def state_badge(view: RunView) -> str:
    """The run's state in a word and a colour."""
    return f'<span class="badge state-{view.state}">{view.state}</span>'


def _step(view: RunView) -> str:
    progress = view.progress
    return f"{progress.step}" + (f" of {progress.total}" if progress.total is not None else "")


def _ago(view: RunView) -> str:
    last = view.records[-1].get("time") if view.records else None
    if not isinstance(last, int | float):
        return "–"
    return f"{format_seconds(max(0.0, time.time() - last))} ago"


def run_head(name: str, view: RunView) -> str:
    """State, progress and the figures of one run as tiles."""
    progress = view.progress
    tiles = [("step", _step(view))]
    if progress.eta_seconds is not None:
        tiles.append(("left", format_seconds(progress.eta_seconds)))
    if progress.seconds_per_step is not None:
        tiles.append(("seconds per step", format_figure(progress.seconds_per_step)))
    if view.tokens_per_second is not None:
        tiles.append(("tokens per second", format_figure(view.tokens_per_second)))
    for key, label in HEADLINES.get(view.stage, TRAINING):
        if (value := view.last(key)) is not None:
            tiles.append((label, format_figure(value)))
    for key, label in (("adapter_version", "adapter version"), ("sync.max_logprob_diff", "sync error")):
        if (value := view.last(key)) is not None:
            tiles.append((label, f"{value:.0f}" if key == "adapter_version" else format_figure(value)))
    cells = "".join(f'<div class="tile"><b>{safe(value)}</b><span>{safe(label)}</span></div>' for label, value in tiles)
    stage = safe(STAGE_NAMES.get(view.stage, view.stage))
    started = f' <span class="hint">started {safe(view.started)}</span>' if view.started else ""
    title = f'<h2>{safe(name)} <span class="badge">{stage}</span> {state_badge(view)}{started}</h2>'
    return f'<div class="rlhf run-head">{title}<div class="tiles">{cells}</div></div>'


def run_plots(view: RunView) -> str:
    """The curves of the run's stage, the less telling ones folded."""
    records = [r for r in view.records if r.get("stage", view.stage) == view.stage] or view.records
    with _DRAWING:
        plots = stage_plots(view.stage, records, {})
    if not plots:
        return '<p class="rlhf hint">No figures yet.</p>'
    shown = [f"<figure>{p.svg}<figcaption>{safe(p.caption)}</figcaption></figure>" for p in plots if not p.folded]
    more = [f"<figure>{p.svg}<figcaption>{safe(p.caption)}</figcaption></figure>" for p in plots if p.folded]
    folded = f'<details><summary>{len(more)} more</summary><div class="plots">{"".join(more)}</div></details>'
    return f'<div class="rlhf"><div class="plots">{"".join(shown)}</div>{folded if more else ""}</div>'


def samples(rows: Sequence[Mapping[str, Any]]) -> str:
    """Drawn responses as cards, newest first."""
    if not rows:
        return '<p class="rlhf hint">No samples: the stage writes none, or has not yet.</p>'
    return f'<div class="rlhf samples">{"".join(_sample(row) for row in rows)}</div>'


def _sample(row: Mapping[str, Any]) -> str:
    facts = [
        (k, row[k]) for k in ("step", "score", "kl", "version", "key") if isinstance(row.get(k), int | float | str)
    ]
    badges = "".join(f'<span class="badge">{safe(k)} {safe(format_figure(v))}</span> ' for k, v in facts)
    texts = []
    for name, value in row.items():
        if name not in ("prompt", "response", "base", "sft", "ppo", "candidates", "responses"):
            continue
        for part in value if isinstance(value, list) else [value]:
            text = part.get("text") or part.get("content") or str(part) if isinstance(part, dict) else str(part)
            texts.append(f"<h3>{safe(name)}</h3>{_quoted(text)}")
    return f'<article class="card sample"><header class="row">{badges}</header>{"".join(texts)}</article>'


def _quoted(text: str) -> str:
    cut = text[:MAX_TEXT_CHARACTERS]
    return f'<div class="untrusted as-written" dir="{direction(cut)}">{plain_html(cut)}</div>'


def events(found: Sequence[Event]) -> str:
    """Lines of the logs."""
    lines = "".join(
        f'<li class="level-{e.level.lower() if e.level.isalpha() else "info"}"><time>{safe(e.time)}</time> '
        f"<b>{safe(e.who)}</b> {safe(e.level)} <span>{safe(e.text)}</span></li>"
        for e in found
    )
    return f'<ul class="rlhf events">{lines}</ul>' if lines else '<p class="rlhf hint">No log lines.</p>'


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[prefix + str(key)] = value
    return found


def config_table(config: Mapping[str, Any]) -> str:
    """Every key of a config."""
    rows = "".join(f"<tr><td>{safe(k)}</td><td>{safe(v)}</td></tr>" for k, v in flat(config).items())
    return f'<div class="rlhf board-scroll"><table class="runs"><tbody>{rows}</tbody></table></div>'


def config_difference(views: Sequence[tuple[str, RunView]]) -> str:
    """The keys in which runs differ, runs across."""
    configs = [flat(view.config) for _, view in views]
    keys = sorted({key for config in configs for key in config})
    missing = "–"
    different = [k for k in keys if len({str(c.get(k, missing)) for c in configs}) > 1 and k != "run_dir"]
    if not different:
        return '<p class="rlhf hint">The configs are equal.</p>'
    head = "".join(f'<th scope="col">{safe(name)}</th>' for name, _ in views)
    rows = "".join(
        f'<tr><th scope="row">{safe(k)}</th>'
        + "".join(f"<td>{safe(c.get(k, missing))}</td>" for c in configs)
        + "</tr>"
        for k in different
    )
    table = f'<table class="runs"><thead><tr><th scope="col">key</th>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="rlhf board-scroll">{table}</div>'


def comparison(views: Sequence[tuple[str, RunView]]) -> str:
    """Runs over one another: every curve that at least one of them has."""
    if not views:
        return '<p class="rlhf hint">Choose two or more runs.</p>'
    stages = {view.stage for _, view in views}
    wanted: dict[str, tuple[str, str]] = {}
    for stage in sorted(stages):
        for curve in CURVES.get(stage, CURVES["sft"]):
            for key, label in curve.lines:
                wanted.setdefault(
                    key, (curve.title if len(curve.lines) == 1 else f"{curve.title}: {label}", curve.ylabel)
                )
    figures = []
    for key, (title, unit) in wanted.items():
        lines = tuple((name, tuple(view.series(key))) for name, view in views)
        if any(points for _, points in lines):
            figures.append(f"<figure>{_overlay(title, unit, lines)}</figure>")
    return f'<div class="rlhf"><div class="plots">{"".join(figures)}</div></div>'


@lru_cache(maxsize=256)
def _overlay(title: str, unit: str, lines: tuple[tuple[str, tuple[tuple[int, float], ...]], ...]) -> str:
    series = [Series(_short(name), [s for s, _ in points], [v for _, v in points]) for name, points in lines if points]
    with _DRAWING:
        return line_plot(series, title, "step", unit)


def _short(name: str, width: int = 22) -> str:
    """A run's name in a legend; the end of a path tells more than its beginning."""
    plain = "".join(c if c.isprintable() else "�" for c in Path(name).as_posix())
    return plain if len(plain) <= width else "…" + plain[1 - width :]
