"""The lead's overview as HTML: pictures first, then every figure as a tile."""

from __future__ import annotations

import html
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from preference_ui.app import charts
from preference_ui.app.site import Site
from preference_ui.commands import report_from
from preference_ui.export import read_snapshot
from preference_ui.i18n import translate
from preference_ui.overview import Overview, head_of, overview_of
from preference_ui.projects import get_project
from preference_ui.statistics.intervals import Interval
from preference_ui.statistics.report import ProjectReport, RaterReport
from preference_ui.zones import zone_of

_TIME_EDGES = (5, 10, 20, 40, 80, 160, 320)


# Every claim and vote is a change: while people rank, figures are worth a minute. Where computing them takes long they
# are kept longer, so that the process which also takes the votes spends a tenth of its time on them at most.
MAX_AGE_SECONDS = 60.0
_AGE_PER_COST = 10.0


@dataclass(frozen=True)
class _Figures:
    """What was computed, when (``fresh_until`` in seconds of the monotonic clock), and how much it includes."""

    seen: Overview
    report: ProjectReport
    computed: datetime
    fresh_until: float


class Dashboard:
    """Renders the overview of one site from figures that may be a minute old."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._lock = threading.Lock()
        self._figures: _Figures | None = None

    def figures(self, *, renew: bool = False) -> tuple[Overview, ProjectReport]:
        """Series and report. One thread computes, others wait for its result.

        Args:
            renew: as the store stands now, whatever the age of the figures.
        """
        figures = self._current(renew)
        return figures.seen, figures.report

    def _current(self, renew: bool) -> _Figures:
        with self._lock:
            now = time.monotonic()
            old = self._figures
            if old is not None and not renew and now < old.fresh_until:
                return old
            if old is None or head_of(self.site.store) != old.seen.head_seq:
                with self.site.store.read() as session:
                    snapshot = read_snapshot(session, self.site.project)
                    seen = overview_of(session, snapshot, self.site.store.clock())
                    report = report_from(session, snapshot)
                old = _Figures(seen, report, self.site.store.clock(), now)
            cost = time.monotonic() - now
            self._figures = replace(old, fresh_until=now + cost + max(MAX_AGE_SECONDS, _AGE_PER_COST * cost))
            return self._figures

    def render(self, locale: str, *, renew: bool = False) -> str:
        """The whole overview. Every name in it is escaped; nothing in it can run."""
        figures = self._current(renew)
        seen, report = figures.seen, figures.report
        pictures = _pictures(seen, report, locale)
        zone = get_project(self.site.store, self.site.project).settings.time_zone
        when = f"{figures.computed.astimezone(zone_of(zone)):%H:%M}"
        as_of = html.escape(translate(locale, "lead.as_of", time=when, zone=zone))
        return (
            f'<div class="rlhf dashboard"><p class="hint">{as_of}</p><div class="pictures">{"".join(pictures)}</div>'
            f"<h2>{html.escape(translate(locale, 'lead.numbers'))}</h2>"
            f'<div class="tiles">{"".join(_tiles(seen, report, locale))}</div></div>'
        )


def percent(value: float) -> str:
    """A share as text; a dash where there is none."""
    return "–" if math.isnan(value) else f"{100 * value:.0f}%"


def number(value: float, digits: int = 2) -> str:
    """A number as text; a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _tiles(seen: Overview, report: ProjectReport, locale: str) -> list[str]:
    def tile(key: str, value: str, more: str = "") -> str:
        small = f'<span class="hint">{html.escape(more)}</span>' if more else ""
        title = html.escape(translate(locale, f"lead.tile.{key}"))
        return f'<div class="tile"><span class="hint">{title}</span><b>{html.escape(value)}</b>{small}</div>'

    def interval(key: str, found: Interval, show: Callable[[float], str]) -> str:
        if math.isnan(found.value):
            return tile(key, "–")
        more = translate(locale, "lead.interval", low=show(found.low), high=show(found.high))
        return tile(key, show(found.value), more)

    return [
        tile("votes", str(report.votes)),
        tile("today", str(seen.today)),
        tile("progress", percent(seen.done / seen.needed if seen.needed else math.nan), f"{seen.done} / {seen.needed}"),
        interval("agreement", report.pair_agreement, percent),
        interval("tau", report.kendall_tau, number),
        interval("alpha", report.alpha_pairs, number),
        interval("gold", report.gold_accuracy, percent),
        interval("consistency", report.self_consistency, percent),
        tile("ceiling", percent(report.reward_model_ceiling)),
        tile("time", "–" if math.isnan(report.median_seconds)
             else translate(locale, "lead.seconds", value=f"{report.median_seconds:.0f}")),
    ]  # fmt: skip


def _pictures(seen: Overview, report: ProjectReport, locale: str) -> list[str]:
    def picture(key: str, svg: str, more: str = "") -> str:
        title = html.escape(translate(locale, f"lead.chart.{key}"))
        words = html.escape(translate(locale, f"lead.chart.{key}.hint"))
        extra = f'<p class="badge">{html.escape(more)}</p>' if more else ""
        body = svg or f'<p class="hint">{html.escape(translate(locale, "lead.nothing"))}</p>'
        caption = f"<figcaption><h2>{title}</h2>{extra}</figcaption>"
        return f'<figure class="picture">{caption}{body}<p class="hint">{words}</p></figure>'

    days = [f"{day:%d.%m.}" for day, _ in seen.per_day]
    counts = [float(count) for _, count in seen.per_day]
    places = [chr(ord("A") + place) for place in range(len(seen.first_by_place))]
    lengths = [f"≤ {edge:g}×" if math.isfinite(edge) else f"> {_last_edge(seen):g}×" for edge, _, _ in seen.longer_wins]
    raters = sorted(report.raters, key=lambda r: -r.beta)[:30]
    handles = [r.handle for r in raters][:10]
    topics = sorted(seen.topics.items(), key=lambda entry: entry[1][0] / max(1, entry[1][1]))[:20]
    return [
        picture("quality", _quality(report, locale)),
        picture("throughput", charts.columns(days, counts, [f"{c:.0f}" for c in counts]) if any(counts) else "",
                f"{percent(seen.done / seen.needed)} · {seen.done} / {seen.needed}" if seen.needed else ""),
        picture("position", charts.columns(places, seen.first_by_place, list(map(percent, seen.first_by_place)),
                reference=seen.first_expected) if places else "",
                translate(locale, "lead.bias.position", value=number(report.position_bias))),
        picture("length", charts.columns(lengths, [share for _, share, _ in seen.longer_wins],
                [percent(share) for _, share, _ in seen.longer_wins], reference=0.5) if lengths else "",
                translate(locale, "lead.bias.length", value=number(report.length_bias))),
        picture("reliability", charts.spans([_rater_span(r) for r in raters], reference=1.0) if raters else ""),
        picture("time", _times(seen.seconds)),
        picture("kappa", charts.grid(handles, _kappa_cells(report, locale)) if report.kappa else ""),
        picture("topics", charts.rows([name or "–" for name, _ in topics], [float(done) for _, (done, _) in topics],
                [f"{done} / {needed}" for _, (done, needed) in topics],
                totals=[float(needed) for _, (_, needed) in topics]) if topics else ""),
    ]  # fmt: skip


def _rater_span(rater: RaterReport) -> charts.Span:
    half = 0.0 if math.isnan(rater.beta_error) else 1.96 * rater.beta_error
    return charts.Span(rater.handle, rater.beta, rater.beta - half, rater.beta + half, number(rater.beta))


def _quality(report: ProjectReport, locale: str) -> str:
    """Every measure of agreement and accuracy with its interval, on one axis."""
    found = [
        ("agreement", report.pair_agreement),
        ("tau", report.kendall_tau),
        ("alpha", report.alpha_pairs),
        ("gold", report.gold_accuracy),
        ("consistency", report.self_consistency),
        ("ceiling", Interval(report.reward_model_ceiling, math.nan, math.nan, 0)),
    ]
    rows = [
        charts.Span(translate(locale, f"lead.tile.{key}"), x.value, x.low, x.high, number(x.value))
        for key, x in found
        if not math.isnan(x.value)
    ]
    return charts.spans(rows, reference=0.5, limits=(-1.0, 1.0)) if rows else ""


def _kappa_cells(report: ProjectReport, locale: str) -> dict[tuple[str, str], tuple[float, str]]:
    cells = {}
    for couple, found in report.kappa_intervals.items():
        between = translate(locale, "lead.interval", low=number(found.low), high=number(found.high))
        cells[couple] = (found.value, f"{number(found.value)} ({between}, n={report.kappa[couple][1]})")
    return cells


def _last_edge(seen: Overview) -> float:
    finite = [edge for edge, _, _ in seen.longer_wins if math.isfinite(edge)]
    return finite[-1] if finite else 1.0


def _times(seconds: Sequence[float]) -> str:
    if not seconds:
        return ""
    bins = [0] * (len(_TIME_EDGES) + 1)
    for value in seconds:
        bins[sum(value > edge for edge in _TIME_EDGES)] += 1
    labels = [f"≤ {edge}" for edge in _TIME_EDGES] + [f"> {_TIME_EDGES[-1]}"]
    return charts.columns(labels, [float(b) for b in bins], [str(b) for b in bins])
