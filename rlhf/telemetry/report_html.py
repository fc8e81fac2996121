"""A report as one HTML page: no script, no request, everything that came from outside escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.telemetry.console import format_figure
from rlhf.telemetry.curves import STAGE_NAMES, Plot
from rlhf.telemetry.headline import Card, Gauge
from rlhf.telemetry.progress import format_seconds
from rlhf.telemetry.report import Report, Sample

_OPEN_SAMPLES = 8
_MODEL_NAMES = {"base": "Base", "sft": "SFT", "reward": "Reward", "ppo": "PPO", "dpo": "DPO"}
_NO_REQUESTS = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def render_report(report: Report) -> str:
    """The page. A part of the report that is empty leaves its section out."""
    sections = [
        ("answers", "Answers side by side", _samples(report.samples)),
        ("curves", "How training went", _curves(report)),
        ("annotators", "Annotators", _annotators(report.annotators)),
        ("time", "Time", _times(report.seconds)),
        ("next", "What to try next", _commands(report.next_commands)),
        ("config", "Settings", _settings(report)),
    ]
    shown = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in shown)
    nav = f'<nav aria-label="Sections">{links}</nav>' if links else ""
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{title}</h2>{content}</section>'
        for key, title, content in shown
    )
    css = Path(__file__).with_name("report.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_NO_REQUESTS}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{_text(report.run_name)} · RLHF report</title><style>{css}</style></head>\n"
        f'<body><div class="wrap">{_head(report, nav)}<main>{_cards(report.cards)}{body}</main>'
        "<footer>This page is one file: it can be mailed, archived, or opened without a network.</footer>"
        "</div></body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _head(report: Report, nav: str) -> str:
    facts = "".join(f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in report.facts)
    return (
        f'<header><p class="eyebrow">RLHF run report</p><h1>{_text(report.run_name)}</h1>'
        + (f'<dl class="facts">{facts}</dl>' if facts else "")
        + (f'<p class="lead">{_text(report.lead)}</p>' if report.lead else "")
        + f"{nav}</header>"
    )


def _cards(cards: Sequence[Card]) -> str:
    if not cards:
        return ""
    parts = []
    for card in cards:
        unit = f" <small>{_text(card.unit)}</small>" if card.unit else ""
        parts.append(
            f'<div class="card {_text(card.tone)}"><p class="label">{_text(card.label)}</p>'
            f'<p class="value num">{_text(card.value)}{unit}</p>{_gauge(card.gauge)}'
            + (f'<p class="detail">{_text(card.detail)}</p>' if card.detail else "")
            + "</div>"
        )
    return f'<div class="cards">{"".join(parts)}</div>'


def _gauge(gauge: Gauge | None) -> str:
    """Drawn for the eye only: the card's text says the same."""
    if gauge is None or not math.isfinite(gauge.value) or gauge.high <= gauge.low:
        return ""

    def place(value: float) -> float:
        return round(100 * min(1.0, max(0.0, (value - gauge.low) / (gauge.high - gauge.low))), 2)

    if gauge.interval:
        low, high = place(gauge.interval[0]), place(gauge.interval[1])
        inner = f'<span class="band" style="left:{low}%;width:{max(1.0, high - low)}%"></span>'
        inner += f'<span class="dot" style="left:{place(gauge.value)}%"></span>'
    else:
        inner = f'<span class="fill" style="width:{place(gauge.value)}%"></span>'
    note = ""
    if gauge.mark is not None:
        at = place(gauge.mark)
        inner += f'<span class="mark" style="left:{at}%"></span>'
        side = "end" if at > 72 else "start" if at < 28 else ""
        label = f'<span class="{side}" style="left:{at}%">{_text(gauge.mark_label)}</span>'
        note = f'<div class="gaugenote">{label}</div>'
    return f'<div aria-hidden="true"><div class="gauge">{inner}</div>{note}</div>'


def _curves(report: Report) -> str:
    parts = []
    for stage, plots in report.plots.items():
        shown = [plot for plot in plots if not plot.folded]
        folded = [plot for plot in plots if plot.folded]
        more = ""
        if folded:
            label = f"{len(folded)} more curve{'s' if len(folded) > 1 else ''}"
            more = f'<details class="fold"><summary>{label}</summary>{_figures(folded)}</details>'
        if plots:
            span = min(3, max(1, len(shown)))
            head = f'<div class="stage span{span}"><h3>{_text(stage_name(stage))}</h3>'
            parts.append(f"{head}{_figures(shown)}{more}</div>")
    return f'<div class="stages">{"".join(parts)}</div>' if parts else ""


def _figures(plots: Sequence[Plot]) -> str:
    figures = "".join(
        f'<figure class="plotbox">{plot.svg}<figcaption>{_text(plot.caption)}</figcaption></figure>' for plot in plots
    )
    return f'<div class="plots">{figures}</div>'


def stage_name(stage: str) -> str:
    """What a reader calls a stage."""
    return STAGE_NAMES.get(stage, stage.replace("_", " ").capitalize())


def _samples(samples: Sequence[Sample]) -> str:
    models = list(dict.fromkeys(name for sample in samples for name in sample.answers))
    if not models:
        return ""
    caption = "Held-out prompts, answered by each model."
    if any(sample.scores for sample in samples):
        caption += " The figure is the judge's score; the best of each row is green."
    more = ""
    if len(samples) > _OPEN_SAMPLES:
        rest = samples[_OPEN_SAMPLES:]
        table = _sample_table(rest, models, "More prompts")
        more = f'<details class="box"><summary>{len(rest)} more prompts</summary>{table}</details>'
    return _sample_table(samples[:_OPEN_SAMPLES], models, caption) + more


def _sample_table(samples: Sequence[Sample], models: Sequence[str], caption: str) -> str:
    names = [_MODEL_NAMES.get(model, model) for model in models]
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in names)
    rows = []
    for sample in samples:
        best = max(sample.scores.values(), default=None)
        cells = "".join(_answer(sample, model, name, best) for model, name in zip(models, names, strict=True))
        rows.append(f'<tr><th scope="row"><div class="text">{_text(sample.prompt)}</div></th>{cells}</tr>')
    return (
        f'<div class="tablebox samples"><table><caption>{caption}</caption>'
        f'<thead><tr><th scope="col" class="prompt">Prompt</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _answer(sample: Sample, model: str, name: str, best: float | None) -> str:
    score, answer = sample.scores.get(model), sample.answers.get(model)
    pill = ""
    if score is not None:
        kind = "pill best" if score == best and len(sample.scores) > 1 else "pill"
        pill = f'<span class="{kind}">{score:.2f}</span>'
    if answer is None:
        text = '<div class="empty">not asked</div>'
    elif not answer.strip():
        text = '<div class="empty">empty answer</div>'
    else:
        text = f'<div class="text">{_text(answer)}</div>'
    return f'<td class="answer" data-label="{_text(name)}">{pill}{text}</td>'


def _annotators(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return ""
    numeric = {c for c in columns if all(_is_number(row[c]) for row in rows if row.get(c) is not None)}
    kinds = {column: ' class="num"' if column in numeric else "" for column in columns}
    head = "".join(f'<th scope="col"{kinds[c]}>{_text(str(c).replace("_", " ").capitalize())}</th>' for c in columns)
    body = ""
    for row in rows:
        cells = [f"<td{kinds[c]}>{_figure(row.get(c))}{_meter(row.get(c))}</td>" for c in columns[1:]]
        body += f'<tr><th scope="row"{kinds[columns[0]]}>{_text(row.get(columns[0]))}</th>{"".join(cells)}</tr>'
    caption = "Who ranked, how much, and how far the rankings can be trusted."
    return (
        '<div class="tablebox"><div class="scroll" tabindex="0" role="region" aria-label="Annotators">'
        f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div></div>"
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _figure(value: object) -> str:
    # Two places: the estimates behind shares and scores do not carry more.
    return f"{value:.2f}" if isinstance(value, float) and abs(value) < 100 else _text(format_figure(value))


def _meter(value: object) -> str:
    if not isinstance(value, float) or not 0 <= value <= 1:
        return ""
    return f'<span class="meter" aria-hidden="true"><i style="width:{100 * value:.0f}%"></i></span>'


def _times(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return ""
    longest = max(max((s for key, s in seconds.items() if key != "total"), default=0.0), 1e-9)
    parts = []
    for stage, spent in sorted(seconds.items(), key=lambda pair: pair[0] == "total"):
        whole = stage == "total"
        kind = " whole" if whole else ""
        bar = "" if whole else f'<i style="width:{100 * spent / longest:.1f}%"></i>'
        parts.append(
            f'<span class="name{kind}">{_text(stage_name(stage))}</span>'
            f'<span class="track" aria-hidden="true">{bar}</span>'
            f'<span class="spent{kind}">{format_seconds(spent)}</span>'
        )
    return f'<div class="box times">{"".join(parts)}</div>'


def _commands(commands: Sequence[tuple[str, str]]) -> str:
    if not commands:
        return ""
    items = "".join(
        f'<li class="box"><p>{_text(purpose)}</p><pre tabindex="0"><code>{_text(command)}</code></pre></li>'
        for command, purpose in commands
    )
    return f'<ol class="commands">{items}</ol>'


def _settings(report: Report) -> str:
    parts = []
    if report.config.strip():
        lines = report.config.count("\n") + 1
        parts.append(
            f'<details class="box"><summary>Resolved config <small>({lines} lines)</small></summary>'
            f'<pre tabindex="0"><code>{_text(report.config)}</code></pre></details>'
        )
    if report.versions:
        text = "\n".join(f"{name:<14} {version}" for name, version in report.versions.items())
        parts.append(
            '<details class="box"><summary>Versions</summary>'
            f'<pre tabindex="0"><code>{_text(text)}</code></pre></details>'
        )
    return "".join(parts)
