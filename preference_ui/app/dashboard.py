"""The lead's overview as HTML: pictures first, then every figure as a tile."""

from __future__ import annotations

import html
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from preference_ui.app import charts
from preference_ui.app.site import Site
from preference_ui.commands import gold_keys
from preference_ui.errors import StoreError
from preference_ui.export import read_snapshot
from preference_ui.i18n import translate
from preference_ui.overview import Overview, coverage_of, head_of, overview_of
from preference_ui.projects import get_project
from preference_ui.statistics.intervals import Interval
from preference_ui.statistics.report import KAPPA_RATERS, ProjectReport, RaterReport, project_report
from preference_ui.zones import zone_of

RATERS_SHOWN, ENOUGH_VOTES = 30, 10
_TIME_EDGES = (5, 10, 20, 40, 80, 160, 320)


# How often a page that waits for figures looks again.
POLL_SECONDS = 1.5
# Every claim and vote is a change: while people rank, figures are worth a minute. Where computing them takes long they
# are kept longer, so that the process which also takes the votes spends a tenth of its time on them at most, and where
# leads keep asking for new ones, half of it.
MAX_AGE_SECONDS = 60.0
_AGE_PER_COST, _PAUSE_PER_COST = 10.0, 1.0


@dataclass(frozen=True)
class Figures:
    """What holds and when it was looked at; ``fresh_until`` and ``renewable_from`` in seconds of the monotonic clock.

    Attributes:
        seen: series, with the event of the chain that everything was read at.
    """

    seen: Overview
    report: ProjectReport
    computed: datetime
    fresh_until: float
    renewable_from: float


@dataclass(frozen=True)
class Look:
    """What there is at once: the newest figures, None before the first, and whether newer ones are on their way."""

    figures: Figures | None
    running: bool


class Dashboard:
    """Computes the figures of one site in one thread, one run at a time, and renders them.

    Nobody whom the server answers may wait for a run: its threads are those that take the votes. ``look`` answers at
    once, and pages ask again until nothing is running.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self._lock = threading.Lock()
        self._run: threading.Thread | None = None
        self._figures: Figures | None = None
        self._asked = False
        self._retry_from = -math.inf

    def look(self, *, renew: bool = False) -> Look:
        """The newest figures; starts a run when they are too old.

        Args:
            renew: they are too old already. One who asks during a run gets a further one after it.
        """
        with self._lock:
            now, old = time.monotonic(), self._figures
            self._asked |= renew
            due = old is None or now >= old.fresh_until or (self._asked and now >= old.renewable_from)
            if due and self._run is None and now >= self._retry_from:
                self._asked = False
                self._run = threading.Thread(target=self._compute, name="lead-figures", daemon=True)
                self._run.start()
            return Look(old, self._run is not None or (self._asked and old is not None))

    def figures(self, *, renew: bool = False) -> tuple[Overview, ProjectReport]:
        """Series and report, waiting for them: not for the server's threads.

        Args:
            renew: as the store stands now, whatever the age of the figures.

        Raises:
            StoreError: they could not be computed.
        """
        look = self.look(renew=renew)
        while look.running:
            run = self._run
            if run is not None:
                run.join()
            else:
                time.sleep(0.05)
            look = self.look()
        if look.figures is None:
            raise StoreError("the lead's figures could not be computed; the error is in the server's log")
        return look.figures.seen, look.figures.report

    def _compute(self) -> None:
        """A run, in a thread of its own. An error ends it, and goes to the log as every thread's does."""
        found, begun = None, time.monotonic()
        try:
            found = self._read(begun)
        finally:
            with self._lock:
                self._run = None
                self._figures = found or self._figures
                self._retry_from = -math.inf if found else time.monotonic() + MAX_AGE_SECONDS

    def _read(self, begun: float) -> Figures:
        old, computed = self._figures, self.site.store.clock()
        if old is not None and head_of(self.site.store) == old.seen.head_seq and old.seen.is_of(computed):
            seen, report = old.seen, old.report
        else:
            with self.site.store.read() as session:
                snapshot = read_snapshot(session, self.site.project, texts=False)
                coverage = coverage_of(session, snapshot.project)
                gold = gold_keys(session, snapshot.project.id)
            # With the reading over: it would keep the database from tidying up behind everybody who votes meanwhile.
            seen, report = overview_of(snapshot, coverage, computed), project_report(snapshot, gold)
        ended = time.monotonic()
        cost = ended - begun
        fresh_until = ended + max(MAX_AGE_SECONDS, _AGE_PER_COST * cost)
        return Figures(seen, report, computed, fresh_until, ended + _PAUSE_PER_COST * cost)

    def status(self, locale: str, look: Look) -> str:
        """A line on figures that are on their way, or that did not come; empty otherwise."""
        key = "lead.computing" if look.running else "lead.failed" if look.figures is None else ""
        return f'<p class="rlhf hint" role="status">{html.escape(translate(locale, key))}</p>' if key else ""

    def page(self, locale: str, look: Look) -> str:
        """The whole overview, or nothing yet. Every name in it is escaped; nothing in it can run."""
        if look.figures is None:
            return ""
        seen, report = look.figures.seen, look.figures.report
        pictures = _pictures(seen, report, locale)
        zone = get_project(self.site.store, self.site.project).settings.time_zone
        when = f"{look.figures.computed.astimezone(zone_of(zone)):%Y-%m-%d %H:%M}"
        as_of = html.escape(translate(locale, "lead.as_of", time=when, zone=zone))
        return (
            f'<div class="rlhf dashboard"><p class="hint">{as_of}</p><div class="pictures">{"".join(pictures)}</div>'
            f"<h2>{html.escape(translate(locale, 'lead.numbers'))}</h2>"
            f'<div class="tiles">{"".join(_tiles(seen, report, locale))}</div></div>'
        )

    def render(self, locale: str) -> str:
        """The whole overview, waiting for its figures as ``figures`` does."""
        self.figures()
        return self.page(locale, self.look())


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
    raters, cut = _worst_raters(report)
    handles = [r.handle for r in sorted(report.raters, key=lambda r: (-r.votes, r.handle))][:KAPPA_RATERS]
    topics = sorted(seen.topics.items(), key=lambda entry: entry[1][0] / max(1, entry[1][1]))[:20]
    shown = [
        picture("quality", _quality(report, locale)),
        picture("throughput", charts.columns(days, counts, [f"{c:.0f}" for c in counts]) if any(counts) else "",
                f"{percent(seen.done / seen.needed)} · {seen.done} / {seen.needed}" if seen.needed else ""),
        picture("position", charts.columns(places, seen.first_by_place, list(map(percent, seen.first_by_place)),
                reference=seen.first_expected) if places else "",
                translate(locale, "lead.bias.position", value=number(report.position_bias))),
        picture("length", charts.columns(lengths, [share for _, share, _ in seen.longer_wins],
                [percent(share) for _, share, _ in seen.longer_wins], reference=0.5) if lengths else "",
                translate(locale, "lead.bias.length", value=number(report.length_bias))),
        picture("reliability", charts.spans([_rater_span(r) for r in raters], reference=1.0) if raters else "",
                translate(locale, "lead.chart.reliability.cut", count=len(raters), votes=ENOUGH_VOTES) if cut else ""),
        picture("time", _times(seen.seconds)),
        picture("kappa", charts.grid(handles, _kappa_cells(report, locale)) if report.kappa else ""),
        picture("topics", charts.rows([name or "–" for name, _ in topics], [float(done) for _, (done, _) in topics],
                [f"{done} / {needed}" for _, (done, needed) in topics],
                totals=[float(needed) for _, (_, needed) in topics]) if topics else ""),
    ]  # fmt: skip
    if seen.groups:
        shown.append(picture("groups", _groups(seen, locale), _stuck(seen, locale)))
    return shown


def _groups(seen: Overview, locale: str) -> str:
    """Votes by group, and how many people can give those that are missing; the groups with fewest people first."""
    found = sorted(seen.groups.items(), key=lambda entry: (entry[1].people, entry[1].done - entry[1].needed))[:20]
    words = [
        translate(locale, "lead.groups.row", done=group.done, needed=group.needed, people=group.people)
        for _, group in found
    ]
    names = [name or translate(locale, "lead.groups.none") for name, _ in found]
    done, needed = ([float(getattr(group, key)) for _, group in found] for key in ("done", "needed"))
    return charts.rows(names, done, words, totals=needed, room=165.0)


def _stuck(seen: Overview, locale: str) -> str:
    names = [name for name, group in seen.groups.items() if name and group.is_stuck]
    return translate(locale, "lead.groups.nobody", names=", ".join(names)) if names else ""


def _worst_raters(report: ProjectReport) -> tuple[list[RaterReport], bool]:
    """Raters as a picture has room for, and whether some lack. The least reliable come first: a lead looks for them.

    Where not all have room, those with few votes are left out: their figures are mostly the group's.
    """
    known = sorted((r for r in report.raters if not math.isnan(r.beta)), key=lambda r: (r.beta, r.handle))
    if len(known) <= RATERS_SHOWN:
        return known, False
    return [r for r in known if r.votes >= ENOUGH_VOTES][:RATERS_SHOWN], True


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
