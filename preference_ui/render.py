"""From untrusted text to HTML that can do nothing but be read.

Model output is attacker-controlled: a response may try to run a script, lay itself over the submit button, call home
with an image, or fake a form. Raw HTML is therefore shown as text, images as their description, links say where they
lead, and characters that reorder or hide text are made visible. No output of this module carries an ``id``, an inline
style, an event handler, or a URL that the browser would load by itself.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

# A response of this length renders in well under a second; anything longer is shown plain.
MAX_MARKDOWN_CHARACTERS = 60_000
# h1 is the page, h2 a region, h3 a response: its own headings start below.
_HEADING_SHIFT = 3
_LINK_SCHEMES = ("http", "https", "mailto")

# Joiners shape Arabic and Indic letters and emoji; there they are ordinary text.
_JOINERS = "\u200c\u200d"
_SPECIAL = re.compile(
    "[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e"
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e007f]"
)


def _is_shaping(text: str, at: int) -> bool:
    """Whether the joiner at this place stands between letters that it joins, or inside an emoji."""
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    if not before or not after:
        return False
    joined = unicodedata.category(before)[0] in "LM" and unicodedata.category(after)[0] in "LM"
    if joined:
        return not (before.isascii() or after.isascii())
    return text[at] == "\u200d" and unicodedata.category(after) == "So"


def visible(text: str) -> str:
    """Escape text for HTML, with characters that hide or reorder text replaced by their visible names."""
    parts, last = [], 0
    for match in _SPECIAL.finditer(text):
        at = match.start()
        if text[at] in _JOINERS and _is_shaping(text, at):
            continue
        name = unicodedata.name(text[at], "control character").lower()
        parts.append(html.escape(text[last:at]))
        parts.append(f'<span class="invisible" title="{html.escape(name)}">U+{ord(text[at]):04X}</span>')
        last = at + 1
    parts.append(html.escape(text[last:]))
    return "".join(parts)


def direction(text: str) -> str:
    """``"rtl"`` when the first strongly directed letter is written from right to left, else ``"ltr"``."""
    for character in text:
        kind = unicodedata.bidirectional(character)
        if kind in ("R", "AL"):
            return "rtl"
        if kind == "L":
            return "ltr"
    return "ltr"


def plain_html(text: str) -> str:
    """The text as it was written, escaped; show it with ``white-space: pre-wrap``."""
    return visible(text)


def markdown_html(text: str) -> str:
    """Render untrusted markdown.

    Formulas come out as ``<span class="math">`` (or ``<div>``) around the escaped TeX source, which reads as code
    where no typesetting script runs.
    """
    if len(text) > MAX_MARKDOWN_CHARACTERS:
        return f'<div class="as-written">{visible(text)}</div>'
    try:
        return str(_markdown().render(text))
    except RecursionError:
        return f'<div class="as-written">{visible(text)}</div>'


@lru_cache(maxsize=1)
def _markdown() -> MarkdownIt:
    # "js-default" refuses javascript:, vbscript:, file: and most data: links; html=False shows tags as text.
    parser = MarkdownIt("js-default", {"html": False, "linkify": False, "typographer": False, "maxNesting": 20})
    parser.inline.ruler.before("escape", "math", _math_rule)
    parser.validateLink = _is_allowed_link  # type: ignore[method-assign]
    for name, rule in {
        "text": _text,
        "code_inline": _code_inline,
        "code_block": _code_block,
        "fence": _code_block,
        "image": _image,
        "heading_open": _heading,
        "heading_close": _heading,
        "link_open": _link_open,
        "link_close": _link_close,
        "table_open": _table_open,
        "table_close": _table_close,
        "math": _math,
    }.items():
        parser.add_render_rule(name, rule)
    return parser


def _is_allowed_link(url: str) -> bool:
    # Relative addresses would point into this very server.
    return urlsplit(url.strip()).scheme.lower() in _LINK_SCHEMES if url.strip() else False


_MATH_MARKS = (("$$", "$$", True), ("\\[", "\\]", True), ("\\(", "\\)", False), ("$", "$", False))


def _math_rule(state: StateInline, silent: bool) -> bool:
    source, start = state.src, state.pos
    if source[start] not in "$\\":
        return False
    for opening, closing, display in _MATH_MARKS:
        if not source.startswith(opening, start):
            continue
        begin = start + len(opening)
        end = source.find(closing, begin)
        inner = source[begin:end]
        if end < 0 or not inner.strip():
            continue
        # "$5 and $10" is money: a formula touches its dollar signs, and no digit follows the last.
        if opening == "$" and (inner[0].isspace() or inner[-1].isspace() or source[end + 1 : end + 2].isdigit()):
            continue
        if not silent:
            token = state.push("math", "math", 0)
            token.content, token.markup = inner, "display" if display else "inline"
        state.pos = end + len(closing)
        return True
    return False


_Tokens = Sequence[Token]


def _text(self: RendererHTML, tokens: _Tokens, index: int, options: OptionsDict, env: EnvType) -> str:
    return visible(tokens[index].content)


def _code_inline(self: RendererHTML, tokens: _Tokens, index: int, options: OptionsDict, env: EnvType) -> str:
    return f"<code>{visible(tokens[index].content)}</code>"


def _code_block(self: RendererHTML, tokens: _Tokens, index: int, options: OptionsDict, env: EnvType) -> str:
    language = (tokens[index].info.split() or [""])[0][:20]
    label = f'<span class="code-language">{visible(language)}</span>' if language else ""
    # Focusable, so that a keyboard can scroll a wide block.
    return f'<div class="code">{label}<pre tabindex="0"><code>{visible(tokens[index].content)}</code></pre></div>\n'


def _image(self: RendererHTML, tokens: _Tokens, index: int, options: OptionsDict, env: EnvType) -> str:
    # Loading it would tell its host who reads this, and when.
    token = tokens[index]
    address = str(token.attrGet("src") or "")
    return f'<span class="image">🖼 {visible(token.content)} <span class="address">{visible(address)}</span></span>'


def _heading(self: RendererHTML, tokens: _Tokens, index: int, options: OptionsDict, env: EnvType) -> str:
    token = tokens[index]
    level = min(6, int(token.tag[1]) + _HEADING_SHIFT)
    return f"<h{level}>" if token.nesting == 1 else f"</h{level}>\n"


def _link_open(self: RendererHTML, tokens: _Tokens, index: int, options: OptionsDict, env: EnvType) -> str:
    address = html.escape(str(tokens[index].attrGet("href") or ""))
    return f'<a href="{address}" target="_blank" rel="noopener noreferrer nofollow">'


def _link_close(self: RendererHTML, tokens: _Tokens, index: int, options: OptionsDict, env: EnvType) -> str:
    depth = 0
    for at in range(index, -1, -1):
        depth += {"link_close": 1, "link_open": -1}.get(tokens[at].type, 0)
        if depth == 0:
            break
    address = str(tokens[at].attrGet("href") or "")
    shown = "".join(t.content for t in tokens[at:index])
    host = urlsplit(address).netloc or address
    return "</a>" if shown == address else f'</a> <span class="address">({visible(host)})</span>'


def _table_open(self: RendererHTML, tokens: _Tokens, index: int, options: OptionsDict, env: EnvType) -> str:
    return '<div class="table" tabindex="0"><table>'


def _table_close(self: RendererHTML, tokens: _Tokens, index: int, options: OptionsDict, env: EnvType) -> str:
    return "</table></div>\n"


def _math(self: Any, tokens: _Tokens, index: int, options: OptionsDict, env: EnvType) -> str:
    token = tokens[index]
    return f'<span class="math" data-display="{token.markup}">{visible(token.content)}</span>'
