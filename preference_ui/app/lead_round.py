"""The qualification round on the tab for people: how somebody stands, and what a lead may do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import gradio as gr

from preference_ui.db import Store
from preference_ui.qualification import Standing, let_pass, start_anew

if TYPE_CHECKING:
    from preference_ui.app.lead import LeadPage


class Ruling(Protocol):
    """What a button does to one person of a project."""

    def __call__(self, store: Store, project: str, annotator_id: str, *, actor: str) -> None: ...


def round_words(lead: LeadPage, standing: Standing | None) -> str:
    """One cell: the state, with the round's answers where there were any."""
    if standing is None:
        return "–"
    words = lead.say(f"people.round.{standing.state}")
    count = lead.say("people.round.count", right=standing.right, answered=standing.answered)
    return f"{words} · {count}" if standing.answered else words


def round_group(lead: LeadPage) -> list[tuple[gr.Button, Ruling, str]]:
    """Add the buttons to a page that is being built; returns each with what it does and what is said then."""
    gr.Markdown(f"## {lead.say('people.round')}\n\n{lead.say('people.round.hint')}")
    with gr.Group():
        anew, through = gr.Button(lead.say("people.round.retry")), gr.Button(lead.say("people.round.pass"))
    return [(anew, start_anew, "people.round.retried"), (through, let_pass, "people.round.let_pass")]
