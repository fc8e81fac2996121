"""Pictures as SVG text: small, sharp at any size, readable in the dark, and free of scripts.

Colours are CSS classes, so that a picture follows the page's theme. Every text is escaped. Widths are in the units of a
picture 430 wide, which the page scales.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 430.0
_LEFT, _RIGHT, _TOP = 8.0, 8.0, 14.0


def _svg(height: float, parts: Sequence[str], description: str) -> str:
    label = html.escape(description, quote=True)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, words: str, anchor: str = "start", kind: str = "label") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{html.escape(words)}</text>'


def columns(
    labels: Sequence[str], values: Sequence[float], texts: Sequence[str], *, reference: float | None = None
) -> str:
    """Upright bars with their values above; a dashed line at ``reference``."""
    height, base = 190.0, 160.0
    top = max([*values, reference or 0.0, 1e-9]) * 1.12
    step = (WIDTH - _LEFT - _RIGHT) / max(1, len(values))
    # As many labels as fit side by side.
    every = math.ceil(len(values) * (7.5 * max(map(len, labels), default=1) + 8) / WIDTH)
    parts, words_over = [], []
    for index, (label, value, words) in enumerate(zip(labels, values, texts, strict=True)):
        x = _LEFT + index * step
        tall = (base - _TOP) * value / top
        wide = min(step * 0.72, 70.0)
        left = x + (step - wide) / 2
        parts.append(
            f'<rect x="{left:.1f}" y="{base - tall:.1f}" width="{wide:.1f}" height="{tall:.1f}" rx="3" class="bar"/>'
        )
        if index % every == 0:
            parts.append(_text(x + step / 2, base + 18, label, "middle"))
            if value:
                words_over.append(_text(x + step / 2, base - tall - 4, words, "middle", "value"))
    parts.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{base}" y2="{base}" class="axis"/>')
    if reference is not None:
        y = base - (base - _TOP) * reference / top
        parts.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="reference"/>')
    said = ", ".join(f"{label}: {words}" for label, words in zip(labels, texts, strict=True))
    return _svg(height, [*parts, *words_over], said)


def rows(
    labels: Sequence[str],
    values: Sequence[float],
    texts: Sequence[str],
    *,
    totals: Sequence[float] | None = None,
    room: float = 70.0,
) -> str:
    """Lying bars, one per row, of a full length ``totals`` (by default the largest value).

    Args:
        room: for the texts at the right.
    """
    line, left = 26.0, 125.0
    full = totals or [max([*values, 1e-9])] * len(values)
    wide = WIDTH - left - room
    parts = []
    for index, (label, value, words, total) in enumerate(zip(labels, values, texts, full, strict=True)):
        y = index * line + 6
        share = min(1.0, value / total) if total else 0.0
        parts.append(_text(left - 10, y + 13, label[:16], "end"))
        parts.append(f'<rect x="{left}" y="{y:.1f}" width="{wide:.1f}" height="17" rx="4" class="track"/>')
        parts.append(f'<rect x="{left}" y="{y:.1f}" width="{wide * share:.1f}" height="17" rx="4" class="bar"/>')
        parts.append(_text(WIDTH - 4, y + 13, words, "end", "value"))
    said = ", ".join(f"{label}: {words}" for label, words in zip(labels, texts, strict=True))
    return _svg(len(values) * line + 12, parts, said)


@dataclass(frozen=True)
class Span:
    """A row of ``spans``: a dot at ``value`` and a line from ``low`` to ``high``, which may be missing (NaN)."""

    label: str
    value: float
    low: float
    high: float
    text: str


def spans(rows_: Sequence[Span], *, reference: float, limits: tuple[float, float] = (-4.0, 6.0)) -> str:
    """Dots with intervals on one axis that shows 0, and a dashed line at ``reference``."""
    line, left = 28.0, 150.0
    ends = [x for row in rows_ for x in (row.value, row.low, row.high) if math.isfinite(x)]
    low, high = max(min([0.0, *ends]), limits[0]), min(max([reference * 1.2, *ends]), limits[1])
    wide = WIDTH - left - 52

    def x_of(value: float) -> float:
        return left + wide * (min(max(value, low), high) - low) / (high - low)

    bottom = len(rows_) * line + 6
    parts = [f'<line x1="{x_of(0):.1f}" x2="{x_of(0):.1f}" y1="0" y2="{bottom}" class="axis"/>']
    parts.append(
        f'<line x1="{x_of(reference):.1f}" x2="{x_of(reference):.1f}" y1="0" y2="{bottom}" class="reference"/>'
    )
    for index, row in enumerate(rows_):
        y = index * line + 18
        parts.append(_text(left - 12, y + 4, row.label[:22], "end"))
        if math.isfinite(row.low) and math.isfinite(row.high):
            parts.append(f'<line x1="{x_of(row.low):.1f}" x2="{x_of(row.high):.1f}" y1="{y}" y2="{y}" class="span"/>')
        parts.append(f'<circle cx="{x_of(row.value):.1f}" cy="{y}" r="5.5" class="bar"/>')
        parts.append(_text(WIDTH - 4, y + 4, row.text, "end", "value"))
    return _svg(bottom, parts, ", ".join(f"{row.label}: {row.text}" for row in rows_))


def grid(labels: Sequence[str], cells: dict[tuple[str, str], tuple[float, str]]) -> str:
    """A table of values in [-1, 1], each with its explanation, for couples of labels; darker is higher."""
    size = min(54.0, (WIDTH - 115) / max(1, len(labels)))
    parts = []
    for row, one in enumerate(labels):
        y = 26 + row * size * 0.62
        parts.append(_text(107, y + size * 0.31 + 4, one[:14], "end"))
        parts.append(_text(115 + row * size + size / 2, 18, one[:6], "middle"))
        for column, other in enumerate(labels):
            value, words = cells.get((one, other), cells.get((other, one), (math.nan, "")))
            x = 115 + column * size
            if row == column or math.isnan(value):
                parts.append(
                    f'<rect x="{x:.1f}" y="{y:.1f}" width="{size - 3:.1f}" '
                    f'height="{size * 0.62 - 3:.1f}" rx="4" class="track"/>'
                )
                continue
            strength = max(0.0, min(1.0, value))
            title = html.escape(f"{one}, {other}: {words}")
            parts.append(
                f'<g><title>{title}</title><rect x="{x:.1f}" y="{y:.1f}" width="{size - 3:.1f}" '
                f'height="{size * 0.62 - 3:.1f}" rx="4" class="heat" fill-opacity="{0.08 + 0.5 * strength:.2f}"/>'
                f"{_text(x + size / 2 - 1.5, y + size * 0.31 + 3, f'{value:.2f}', 'middle', 'value')}</g>"
            )
    said = ", ".join(f"{a}, {b}: {words}" for (a, b), (_, words) in cells.items())
    return _svg(32 + len(labels) * size * 0.62, parts, said)
