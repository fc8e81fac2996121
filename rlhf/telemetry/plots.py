"""Small plots as inline SVG, one idea each, drawn with matplotlib's object API (no global figure)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf.telemetry.svg import GRID, INK, LIMIT, MUTED, SERIES_COLORS, figure_to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE_INCHES = (4.1, 2.5)
_MAX_POINTS = 400
_LEGEND_CHARACTERS = 56
_NICE_STEPS = (1, 2, 2.5, 5, 10)
Number = float | int | None
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """One line. A value that is None or not finite leaves a gap.

    Attributes:
        name: what the legend says.
        x: positions, ascending.
        y: values, as many as `x`.
        band: lower and upper bounds of a shaded band, as many as `x` each.
    """

    name: str
    x: Sequence[Number]
    y: Sequence[Number]
    band: tuple[Sequence[Number], Sequence[Number]] | None = None


def line_plot(
    series: Sequence[Series],
    title: str,
    xlabel: str,
    ylabel: str,
    hlines: Sequence[tuple[float, str]] = (),
    vlines: Sequence[tuple[float, str]] = (),
    from_zero: bool = False,
) -> str:
    """Lines over a common axis; `hlines` and `vlines` are (position, label) references such as limits.

    With `from_zero` the vertical axis holds 0, so that heights compare as sizes.
    Long series are averaged down to about 400 points, so that a report of a long run stays small.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _new_axes(title, xlabel, ylabel)
    for index, one in enumerate(series):
        color = SERIES_COLORS[index % len(SERIES_COLORS)]
        x, y, band = _thin(one)
        sparse = sum(map(math.isfinite, y)) <= 30
        style = {"marker": "o", "markersize": 2.6} if sparse else {}
        axes.plot(x, y, color=color, linewidth=1.7, label=one.name, **style)  # type: ignore[arg-type]
        if band is not None:
            axes.fill_between(x, band[0], band[1], color=color, alpha=0.16, linewidth=0)
    for position, label in hlines:
        axes.axhline(position, color=LIMIT, linewidth=1.2, linestyle=(0, (4, 3)), label=label)
    for position, label in vlines:
        axes.axvline(position, color=MUTED, linewidth=1.2, linestyle=(0, (1, 2)), label=label)
    if all(one is None or float(one).is_integer() for s in series for one in s.x):
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=_NICE_STEPS, integer=True))
    if from_zero:
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.0) if min(low, 0.0) < -0.06 * high else 0.0, high)
    _legend(axes, always=bool(hlines or vlines))
    return figure_to_svg(figure, _describe(title, series, hlines))


def bar_with_interval(
    names: Sequence[str],
    values: Sequence[float],
    intervals: Sequence[tuple[float, float] | None],
    title: str,
    xlabel: str,
    vlines: Sequence[tuple[float, str]] = (),
) -> str:
    """Horizontal bars, each with its value written out and, where known, its (low, high) interval."""
    figure, axes = _new_axes(title, xlabel, "", height=max(1.5, 0.85 + 0.38 * len(names)))
    places = range(len(names))
    colors = [SERIES_COLORS[index % len(SERIES_COLORS)] for index in places]
    axes.barh(list(places), values, color=colors, alpha=0.85, height=0.62)
    reach = [value for value in values]
    for place, interval in zip(places, intervals, strict=True):
        if interval is not None:
            axes.plot(interval, (place, place), color=INK, linewidth=1.6, solid_capstyle="butt")
            reach[place] = max(reach[place], interval[1])
    for place, (value, end) in enumerate(zip(values, reach, strict=True)):
        axes.annotate(
            short_number(value),
            (max(end, 0.0), place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=INK,
        )
    for position, label in vlines:
        axes.axvline(position, color=LIMIT, linewidth=1.2, linestyle=(0, (4, 3)), label=label)
    axes.set_yticks(list(places), [_clip(name) for name in names], color=INK)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.margins(x=0.16)
    _legend(axes, always=bool(vlines))
    pairs = ", ".join(f"{name} {short_number(value)}" for name, value in zip(names, values, strict=True))
    return figure_to_svg(figure, f"{title}: {pairs}")


def scatter(groups: Mapping[str, Points], title: str, xlabel: str, ylabel: str, diagonal: bool = False) -> str:
    """Points by group; `diagonal` adds the line y = x."""
    figure, axes = _new_axes(title, xlabel, ylabel)
    for index, (name, points) in enumerate(groups.items()):
        color = SERIES_COLORS[index % len(SERIES_COLORS)]
        x, y = [p[0] for p in points], [p[1] for p in points]
        axes.scatter(x, y, s=13, color=color, alpha=0.75, linewidths=0, label=name)
    if diagonal:
        axes.axline((0, 0), slope=1, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
    _legend(axes)
    count = sum(len(points) for points in groups.values())
    return figure_to_svg(figure, f"{title}: {count} points, {ylabel} against {xlabel}")


def reward_kl_curve(
    points: Points | Mapping[str, Points],
    bound_points: Points,
    title: str = "Gain in score for the distance moved",
    xlabel: str = "KL from the initial policy (nats per response)",
    ylabel: str = "gain (initial deviations)",
) -> str:
    """Gain over KL, step by step, beside the most that any policy can gain at that KL.

    Args:
        points: (kl, gain) in the order of the steps, or such sequences by name (one per seed).
        bound_points: (kl, gain) of the bound, ascending in kl; the region above it is out of reach.
        title: what the plot says.
        xlabel: unit of the distance.
        ylabel: unit of the gain.
    """
    runs = points if isinstance(points, Mapping) else {"PPO": points}
    figure, axes = _new_axes(title, xlabel, ylabel)
    if bound_points:
        x, y = [p[0] for p in bound_points], [p[1] for p in bound_points]
        axes.plot(x, y, color=MUTED, linewidth=1.4, linestyle=(0, (4, 3)), label="most possible")
        axes.fill_between(x, 0, y, color=MUTED, alpha=0.08, linewidth=0)
    for index, (name, run) in enumerate(runs.items()):
        color = SERIES_COLORS[index % len(SERIES_COLORS)]
        x, y = [p[0] for p in run], [p[1] for p in run]
        axes.plot(x, y, color=color, linewidth=1.4, marker="o", markersize=2.8, label=name)
    _legend(axes, always=True)
    ends = ", ".join(f"{name} ends at {run[-1][1]:.2f} for {run[-1][0]:.2f}" for name, run in runs.items() if run)
    return figure_to_svg(figure, f"{title}: {ends}")


def short_number(value: float) -> str:
    """``0.25``, ``1e-06``, ``12k``, ``3.4M``: fits beside a tick or a bar."""
    size = abs(value)
    if size == 0 or not math.isfinite(value):
        return "0" if size == 0 else str(value)
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size >= scale * (10 if unit == "k" else 1):
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}" if size < 1000 else f"{value:.0f}"


def _new_axes(title: str, xlabel: str, ylabel: str, height: float = _SIZE_INCHES[1]) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(_SIZE_INCHES[0], height), layout="constrained")
    axes = figure.add_subplot()
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_xlabel(xlabel, color=MUTED, fontsize=9)
    axes.set_ylabel(ylabel, color=MUTED, fontsize=9)
    axes.tick_params(colors=MUTED, length=0, labelsize=9)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5, steps=_NICE_STEPS))
        axis.set_major_formatter(FuncFormatter(lambda value, _: short_number(round(value, 12))))
    return figure, axes


def _legend(axes: Axes, always: bool = False) -> None:
    handles, labels = axes.get_legend_handles_labels()
    widths = [len(label) + 5 for label in labels]  # the line sample takes about five characters
    fits_one_row = sum(widths) <= _LEGEND_CHARACTERS
    if len(labels) > 1 or (always and labels):
        axes.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(-0.01, 1.0),
            ncols=len(labels) if fits_one_row else max(1, _LEGEND_CHARACTERS // max(widths)),
            frameon=False,
            fontsize=9,
            labelcolor=INK,
            handlelength=1.4,
            columnspacing=1.2,
            borderaxespad=0.1,
        )


def _clip(name: str, width: int = 26) -> str:
    return name if len(name) <= width else name[: width - 1] + "…"


def _describe(title: str, series: Sequence[Series], hlines: Sequence[tuple[float, str]]) -> str:
    parts = []
    for one in series:
        known = [y for y in map(_float, one.y) if math.isfinite(y)]
        if known:
            parts.append(f"{one.name} goes from {short_number(known[0])} to {short_number(known[-1])}")
    parts += [f"{label} at {short_number(position)}" for position, label in hlines]
    return f"{title}: {'; '.join(parts)}" if parts else title


def _float(value: Number) -> float:
    return math.nan if value is None or not math.isfinite(value) else float(value)


def _thin(one: Series) -> tuple[list[float], list[float], tuple[list[float], list[float]] | None]:
    """The series as floats, averaged over equal runs of neighbours when it is long."""
    width = math.ceil(len(one.x) / _MAX_POINTS)

    def reduce(values: Sequence[Number]) -> list[float]:
        floats = [_float(value) for value in values]
        if width <= 1:
            return floats
        return [_mean(floats[start : start + width]) for start in range(0, len(floats), width)]

    band = (reduce(one.band[0]), reduce(one.band[1])) if one.band else None
    return reduce(one.x), reduce(one.y), band


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
