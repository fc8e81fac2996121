"""A task with everything that people said about it, as HTML for the lead.

Every annotator saw the responses in an order of their own, and a reason speaks of the letters of that order. Here the
responses have numbers, so that no letter of a reason can be taken for one of this page; each vote tells both.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from preference_ui.export import JudgmentRecord
from preference_ui.projects import get_project
from preference_ui.render import direction, markdown_html
from preference_ui.zones import zone_of
from rlhf.data.schema import Message

if TYPE_CHECKING:
    from preference_ui.app.lead import LeadPage

LETTERS = "ABCDEFGHI"


_SKIPS = ("unknown_subject", "unclear", "language", "distressing", "broken", "other")


def label(texts: Mapping[str, str], kind: str, code: str) -> str:
    """The page's words for a code of flags or axes; a project's own codes are their own words."""
    return texts.get(f"{kind}.{code}", code)


def skip_words(texts: Mapping[str, str], reason: str) -> str:
    """Why somebody skipped: the page's reasons in the reader's language, what was written as it was written."""
    code, colon, words = reason.partition(":")
    return texts[f"skip.{code}"] + colon + words if code in _SKIPS else reason


def safe_block(text: str) -> str:
    """Untrusted markdown in a box that it cannot leave."""
    return f'<div class="untrusted" dir="{direction(text)}">{markdown_html(text)}</div>'


def names_for(vote: JudgmentRecord, numbers: Mapping[str, int]) -> dict[str, str]:
    """``3 (A)`` per response id: its number on the lead's page, and the letter that this annotator saw."""
    return {response: f"{numbers[response]} ({LETTERS[slot]})" for slot, response in enumerate(vote.shown)}


def vote_order(vote: JudgmentRecord, names: Mapping[str, str]) -> str:
    """The ranking in a line, best first."""
    return " > ".join(" = ".join(names[r] for r in tier) for tier in vote.tiers)


def _badge(text: str, kind: str = "badge") -> str:
    return f'<span class="{kind}">{html.escape(text)}</span>'


def _vote_html(lead: LeadPage, vote: JudgmentRecord, numbers: Mapping[str, int], zone: str) -> str:
    names = names_for(vote, numbers)
    parts = [f"<b>{html.escape(vote.handle)}</b>", _badge(vote_order(vote, names))]
    if vote.all_bad:
        parts.append(_badge(lead.say("vote.all_bad"), "badge warn"))
    for response, code in vote.flags:
        where = f" · {names[response]}" if response is not None else ""
        parts.append(_badge(f"⚑ {label(lead.texts, 'flag', code)}{where}", "badge warn"))
    axes: dict[str, list[str]] = {}
    for response, axis, value in vote.ratings:
        axes.setdefault(axis, []).append(f"{names[response]}: {value}")
    ratings = [f"{label(lead.texts, 'axis', axis)} – {', '.join(values)}" for axis, values in axes.items()]
    edits = [lead.say("vote.edited", name=names[response]) for response, _ in vote.edits]
    stamp = f"{vote.answered.astimezone(zone_of(zone)):%Y-%m-%d %H:%M} ({zone})"
    small = " · ".join([stamp, *ratings, *edits])
    parts.append(f'<p class="hint">{html.escape(small)}</p>')
    if vote.rationale:
        parts.append(safe_block(vote.rationale))
    return f"<li>{' '.join(parts)}</li>"


def task_html(
    lead: LeadPage,
    prompt: Sequence[Message],
    responses: Sequence[tuple[str, str]],
    votes: Sequence[JudgmentRecord],
    skip_reasons: Sequence[str],
) -> str:
    """The votes, the conversation and the numbered responses.

    Args:
        responses: ``(response id, text)`` in the order of their numbers.
    """
    numbers = {response: number for number, (response, _) in enumerate(responses, start=1)}
    zone = get_project(lead.site.store, lead.site.project).settings.time_zone
    lines = [_vote_html(lead, vote, numbers, zone) for vote in votes]
    for reason in skip_reasons:
        words = lead.say("vote.skip", reason=skip_words(lead.texts, reason))
        lines.append(f"<li class='hint'>{html.escape(words)}</li>")
    key = f'<p class="hint">{html.escape(lead.say("vote.key"))}</p>' if votes else ""
    cards = "".join(
        f'<article class="card"><header><h2><span class="letter">{numbers[response]}</span></h2></header>'
        f'<div class="card-body">{safe_block(text)}</div></article>'
        for response, text in responses
    )
    turns = "".join(f'<div class="turn turn-{m.role}">{safe_block(m.content)}</div>' for m in prompt)
    return (
        f'<div class="rlhf decision">{key}<ul class="votes">{"".join(lines)}</ul>'
        f'<section class="prompt">{turns}</section><div class="cards">{cards}</div></div>'
    )


def flagged_with(votes: Sequence[JudgmentRecord]) -> list[str]:
    """The codes of all flags of a task, each once."""
    return sorted({code for vote in votes for _, code in vote.flags})
