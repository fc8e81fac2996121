"""The lead's tab for the guidelines, and the boxes in which leads change their text.

A box remembers the version it was filled with: what is in force may change while somebody types, in another tab or by
another lead, and a text that starts from an older version would quietly take that change back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from preference_ui.app.boxes import Shown, note_box
from preference_ui.app.lead_votes import safe_block
from preference_ui.app.refusal import Refusal, in_words, refusable
from preference_ui.errors import DataError, StaleGuideline
from preference_ui.guidelines import publish_guideline
from preference_ui.projects import get_guideline, get_project

if TYPE_CHECKING:
    from preference_ui.app.lead import LeadPage


@dataclass(frozen=True)
class Loaded(Shown):
    """The text that a box was filled with, and its version; version 0: nothing yet."""

    version: int = 0
    text: str = ""

    def is_untouched(self, text: str) -> bool:
        """Whether a box still holds it; browsers write line ends in their own way."""
        return _plain(text) == _plain(self.text)


@dataclass(frozen=True)
class GuidelineBox:
    """A text box for a new version, with the note of what it was filled with (``Loaded``)."""

    words: gr.Textbox
    loaded: gr.Textbox


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def in_force(lead: LeadPage) -> Loaded:
    """The guideline that holds now."""
    project = get_project(lead.site.store, lead.site.project)
    return Loaded(project.guideline_version, get_guideline(lead.site.store, project.id, project.guideline_version))


def stale(lead: LeadPage, loaded: Loaded, error: StaleGuideline) -> Refusal:
    """Says that the box started from another version than the one in force."""
    return Refusal(lead.say("guideline.stale", version=error.version, base=loaded.version))


def follow(lead: LeadPage, done: Any, box: GuidelineBox, event: dict[str, Any]) -> None:
    """After an event, show the version then in force in a box that nobody has typed into."""

    def renew(text: str, loaded: str, request: gr.Request) -> Any:
        lead.caller(request, "reviewer")
        if not Loaded.read(loaded).is_untouched(text):
            return gr.skip()
        now = in_force(lead)
        return now.text, now.as_text()

    parts = [box.words, box.loaded]
    done.success(refusable(renew), parts, parts, **event | {"show_progress": "hidden"})


def guideline_tab(lead: LeadPage, page: gr.Blocks, event: dict[str, Any]) -> tuple[GuidelineBox, Any]:
    """Add the tab's contents to a page that is being built.

    Returns:
        Its box, and the event of a publication.
    """
    loaded = note_box()
    with gr.Row():
        with gr.Column():
            words = gr.Textbox(label=lead.say("guideline.text"), lines=20, max_length=100_000)
            reason = gr.Textbox(label=lead.say("guideline.reason"), max_length=2000)
            publish = gr.Button(lead.say("guideline.publish"), variant="primary", elem_classes=["narrow"])
        with gr.Column():
            gr.Markdown(f"## {lead.say('guideline.preview')}")
            preview = gr.HTML(apply_default_css=False)

    def show(text: str) -> str:
        return f'<div class="rlhf reading-page">{safe_block(text)}</div>'

    def load(request: gr.Request) -> tuple[str, str, str]:
        lead.caller(request, "reviewer")
        now = in_force(lead)
        return now.text, now.as_text(), show(now.text)

    def save(text: str, on_screen: str, why: str, request: gr.Request) -> tuple[str, str]:
        person, before = lead.caller(request, "reviewer"), Loaded.read(on_screen)
        project = get_project(lead.site.store, lead.site.project)
        try:
            version = publish_guideline(
                lead.site.store, project.id, text, reason=why, actor=person.id, based_on=before.version
            )
        except StaleGuideline as error:
            raise stale(lead, before, error) from error
        except DataError as error:
            raise in_words(lead.texts, error) from error
        gr.Info(lead.say("guideline.published", version=version))
        return Loaded(version, text).as_text(), ""

    page.load(refusable(load), None, [words, loaded, preview], **event)
    words.change(show, words, preview, **event | {"show_progress": "hidden"})
    done = publish.click(refusable(save), [words, loaded, reason], [loaded, reason], **event)
    return GuidelineBox(words, loaded), done
