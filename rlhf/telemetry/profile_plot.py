"""A profile as one picture: who did what in the last step, over where a step's time goes at the median."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlhf.telemetry.profile import (
    IDLE,
    KINDS,
    WORKER_KINDS,
    Piece,
    StepSpans,
    idle_by_role,
    lane_pieces,
    step_pieces,
)
from rlhf.telemetry.svg import GRID, INK, MUTED, SERIES_COLORS, figure_to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GROUPS = {"generate": 0, "score": 1, "learn": 2, "sync": 3, "ray": 4, "driver": 5, "critic": 2}
SHADES = {
    "learn.backward": 0.75,
    "learn.optimizer": 0.5,
    "learn.loss": 0.32,
    "learn.rest": 0.32,
    "score.models": 0.75,
    "score.functions": 0.55,
    "score.rest": 0.4,
    "critic.learn": 0.6,
    "critic.score": 0.42,
    "sync.install": 0.75,
    "sync.canary": 0.5,
    "ray.store": 0.5,
}
NAMES = {"ray.overhead": "Ray's calls", "ray.store": "object store"}
MAX_LANES = 40
MAX_PIECES = 1200
"""Per lane; a lane with more is drawn in groups of kinds, gaps of a thousandth of the step closed."""
WIDTH_INCHES = 9.6
ON_COLOR = "#0b1524"
LABELLED = 0.055
"""Share of the longest bar from which a part carries its seconds."""


def draw_profile(step: StepSpans, median: Mapping[str, Any]) -> str:
    """The picture as one ``<svg>`` element."""
    from matplotlib.figure import Figure

    start, end = step.window
    workers = {lane: lane_pieces(spans, start, end, WORKER_KINDS) for lane, spans in sorted(step.workers.items())}
    lanes = {"step": step_pieces(step, workers), **dict(list(workers.items())[:MAX_LANES])}
    bars = {"step": median["kinds"], **{f"{r} (mean)": k for r, k in idle_by_role(median["lanes"]).items()}}
    heights = [0.3 * len(lanes) + 0.3, 0.42 * len(bars) + 0.3]
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights) + 1.7), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=heights)
    _timeline(above, lanes, start, end)
    above.set_title(f"Step {step.step}, {(end - start) / 1e9:.3g} s", loc="left", fontsize=10.5, color=INK)
    _bars(below, bars)
    title = f"Median of every part; median step {median['wall_seconds']:.3g} s"
    below.set_title(title, loc="left", fontsize=10.5, color=INK)
    shown = [k for k in KINDS if any(k in kinds for kinds in [*bars.values(), *_kinds_of(lanes)])]
    _legend(below, shown)
    parts = ", ".join(f"{name_of(kind)} {seconds:.3g}" for kind, seconds in median["kinds"].items() if seconds > 0)
    return figure_to_svg(figure, f"{title}: {parts}")


def name_of(kind: str) -> str:
    """A kind as the legend says it."""
    return NAMES.get(kind, kind.replace(".", ": "))


def _kinds_of(lanes: Mapping[str, Sequence[Piece]]) -> list[set[str]]:
    return [{piece.kind for piece in pieces} for pieces in lanes.values()]


def _style(kind: str) -> dict[str, Any]:
    group = GROUPS.get(kind.partition(".")[0])
    color = (GRID if kind == IDLE else MUTED) if group is None else SERIES_COLORS[group]
    return {"color": color, "alpha": SHADES.get(kind, 1.0), "linewidth": 0}


def _timeline(axes: Axes, lanes: Mapping[str, Sequence[Piece]], start: int, end: int) -> None:
    for row, pieces in enumerate(lanes.values()):
        by_kind: dict[str, list[tuple[float, float]]] = {}
        for piece in _coarse(pieces, end - start):
            place = ((piece.start - start) / 1e9, (piece.end - piece.start) / 1e9)
            by_kind.setdefault(piece.kind, []).append(place)
        for kind, places in by_kind.items():
            axes.broken_barh(places, (row - 0.38, 0.76), **_style(kind))
    axes.set_xlim(0, (end - start) / 1e9)
    _rows(axes, list(lanes))


def _coarse(pieces: Sequence[Piece], wall: int) -> list[Piece]:
    if len(pieces) <= MAX_PIECES:
        return list(pieces)
    found: list[Piece] = []
    for piece in pieces:
        group = {"learn": "learn.forward", "score": "score.pass"}.get(piece.kind.partition(".")[0], piece.kind)
        if found and found[-1].kind == group and piece.start - found[-1].end < wall / 1000:
            found[-1] = Piece(found[-1].start, piece.end, group)
        else:
            found.append(Piece(piece.start, piece.end, group))
    return found


def _bars(axes: Axes, bars: Mapping[str, Mapping[str, float]]) -> None:
    longest = max(sum(kinds.values()) for kinds in bars.values())
    for row, kinds in enumerate(bars.values()):
        left = 0.0
        for kind in (kind for kind in KINDS if kinds.get(kind, 0.0) > 0):
            axes.barh(row, kinds[kind], left=left, height=0.7, **_style(kind))
            if kinds[kind] > LABELLED * longest:
                color = INK if kind == IDLE else ON_COLOR
                axes.text(left + kinds[kind] / 2, row, f"{kinds[kind]:.2g}", ha="center", va="center_baseline",
                          fontsize=9, color=color)  # fmt: skip
            left += kinds[kind]
    axes.set_xlim(0, longest)
    axes.set_xlabel("seconds", color=MUTED, fontsize=9)
    _rows(axes, list(bars))


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(colors=MUTED, length=0, labelsize=9)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(True, axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)


def _legend(axes: Axes, kinds: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(label=name_of(kind), **_style(kind)) for kind in kinds]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, -0.36), ncols=6, frameon=False, fontsize=9,
                labelcolor=INK, handlelength=1.1, columnspacing=1.3)  # fmt: skip
