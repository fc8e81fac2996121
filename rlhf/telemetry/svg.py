"""Turns matplotlib figures into small SVG strings that live inside a page: themed by CSS, text as text."""

from __future__ import annotations

import hashlib
import html
import io
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Drawn with marker colours, then replaced by CSS variables: the page decides what they look like, light or
# dark. The fallbacks are used where the page sets nothing, and are legible on white and on black.
_THEME = {
    "#010101": ("--ink", "#808894"),
    "#020202": ("--muted", "#808894"),
    "#030303": ("--grid", "#80889440"),
    "#040404": ("--limit", "#e5534b"),
    "#050501": ("--c1", "#4a8cf0"),
    "#050502": ("--c2", "#e58a2f"),
    "#050503": ("--c3", "#2ea58a"),
    "#050504": ("--c4", "#a874dc"),
    "#050505": ("--c5", "#d6608f"),
    "#050506": ("--c6", "#8a9a3b"),
}
INK, MUTED, GRID, LIMIT = "#010101", "#020202", "#030303", "#040404"
SERIES_COLORS = ("#050501", "#050502", "#050503", "#050504", "#050505", "#050506")

_RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rlhf",
    "font.family": "sans-serif",
    "font.size": 9.5,
}
_ID = re.compile(r'\sid="([^"]+)"')
_FONT_FAMILY = re.compile(r"font-family: [^;\"]+")
_FONT_SHORTHAND = re.compile(r"font: ((?:\w+ )*?)([\d.]+px) [^;\"]+")
_COORDINATES = re.compile(r'\s(?:d|x|y|transform)="[^"]*"')
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")


def figure_to_svg(figure: Figure, label: str) -> str:
    """Renders a figure as one ``<svg>`` element.

    The element scales to its container, refers to nothing outside itself, has identifiers of its own (several
    may stand in one page), and carries `label` for readers who cannot see it.
    """
    import matplotlib
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # type: ignore[attr-defined]
    out = io.StringIO()
    with matplotlib.rc_context(_RC):  # type: ignore[arg-type]
        figure.savefig(out, format="svg", transparent=True)
    return _inline(out.getvalue(), label)


def _inline(document: str, label: str) -> str:
    body = document[document.index("<svg") :].strip()
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    head, rest = body.split(">", 1)
    size = re.search(r'viewBox="[^"]+"', head)
    prefix = "p" + hashlib.sha256((label + rest).encode()).hexdigest()[:8]
    rest = _own_ids(rest, prefix)
    rest = _FONT_FAMILY.sub("font-family: inherit", rest)
    rest = _FONT_SHORTHAND.sub(r"font-size: \2; font-family: inherit", rest)
    for marker, (variable, fallback) in _THEME.items():
        rest = rest.replace(marker, f"var({variable}, {fallback})")
    rest = _COORDINATES.sub(lambda match: _LONG_NUMBER.sub(_two_places, match.group()), rest)
    rest = re.sub(r"\n\s*", "\n", rest)
    name = html.escape(label, quote=True)
    return (
        f'<svg class="plot" role="img" aria-label="{name}" {size.group() if size else ""} width="100%" '
        'style="font-family: system-ui, sans-serif; stroke-linejoin: round; height: auto" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
        f"<title>{name}</title>{rest}"
    )


def _two_places(match: re.Match[str]) -> str:
    return f"{float(match.group()):.2f}"


def _own_ids(text: str, prefix: str) -> str:
    """Drops identifiers that nothing refers to and makes the others unique to this figure."""
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    text = _ID.sub(lambda m: f' id="{prefix}{m.group(1)}"' if m.group(1) in used else "", text)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", text)
