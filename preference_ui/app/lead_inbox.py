"""The lead's tab for disagreements: tasks that want a decision, and the decision."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from preference_ui.app.boxes import Shown, as_sent, note_box
from preference_ui.app.dashboard import percent
from preference_ui.app.lead_guideline import GuidelineBox, Loaded, in_force, stale
from preference_ui.app.lead_votes import flagged_with, label, task_html
from preference_ui.app.refusal import Refusal, in_words, refusable
from preference_ui.errors import AlreadyDecided, DataError, StaleGuideline, StaleVote
from preference_ui.people import Person, list_annotators
from preference_ui.projects import load_project
from preference_ui.qualification import held_up
from preference_ui.reviews import VERDICTS, InboxEntry, Seen, decide, entry_of

if TYPE_CHECKING:
    from preference_ui.app.lead import LeadPage


@dataclass(frozen=True)
class ShownTask(Shown):
    """The task on the screen and how many decisions it had then."""

    item_id: str = ""
    num_decisions: int = 0


@dataclass(frozen=True)
class Wish:
    """What a lead wants done with a task."""

    kind: str
    why: str
    retire: bool
    aside: Sequence[str]
    one_more: bool


def _choices(lead: LeadPage, entries: list[InboxEntry]) -> list[tuple[str, str]]:
    choices = []
    for entry in entries:
        why = []
        if entry.skip_reasons:
            why.append(lead.say("inbox.skipped", count=len(entry.skip_reasons)))
        if len(entry.votes) > 1:
            why.append(lead.say("inbox.agreement", value=percent(entry.agreement)))
        flags = flagged_with(entry.votes)
        if entry.is_short and not entry.skip_reasons and not flags:
            why.append(lead.say("inbox.stranded"))
        why += [f"⚑ {label(lead.texts, 'flag', code)}" for code in flags]
        choices.append((" · ".join([entry.prompt[-1].content[:60], *why]), entry.item_id))
    return choices


def _held_up(lead: LeadPage) -> str:
    """Whom the qualification round leaves without tasks until a lead does something."""
    names = {person.id: person.handle for person in list_annotators(lead.site.store)}
    with lead.site.store.read() as session:
        waiting = held_up(session, load_project(session, lead.site.project))
    told = [lead.say(f"inbox.held_up.{why}", name=names[person]) for person, why in waiting.items()]
    line = lead.say("inbox.held_up", names=", ".join(sorted(told)))
    return f'<p class="rlhf hint" role="status">{html.escape(line)}</p>' if told else ""


def _shown(lead: LeadPage, entry: InboxEntry | None) -> tuple[str, str, Any]:
    """The task, the note of which it is, and its votes to choose from."""
    if entry is None:
        return f'<p class="rlhf">{html.escape(lead.say("inbox.empty"))}</p>', "", gr.update(choices=[], value=[])
    page = task_html(lead, entry.prompt, entry.responses, entry.votes, entry.skip_reasons)
    votes = [(vote.handle, vote.judgment_id) for vote in entry.votes]
    return page, ShownTask(entry.item_id, entry.num_decisions).as_text(), gr.update(choices=votes, value=[])


def inbox_tab(lead: LeadPage, tab: gr.Tab, event: dict[str, Any]) -> tuple[GuidelineBox, Any]:
    """Add the contents to a tab that is being built. Nothing is read before somebody opens it.

    Returns:
        Its box for a new guideline, and the event of a decision.
    """
    site, say = lead.site, lead.say
    held = gr.HTML(apply_default_css=False)
    pick = gr.Dropdown([], label=say("inbox.pick"), interactive=True, filterable=False)
    board = gr.HTML(apply_default_css=False)
    shown, loaded, opened = note_box(), note_box(), note_box()
    verdict = gr.Radio(
        [(say(f"inbox.{name}"), name) for name in VERDICTS], value=VERDICTS[0], label=say("inbox.verdict")
    )
    note = gr.Textbox(label=say("inbox.note"), lines=2, max_length=5000)
    words = gr.Textbox("", label=say("inbox.new_guideline"), lines=8, max_length=100_000)
    aside = gr.CheckboxGroup([], label=say("inbox.aside"), info=say("inbox.aside.hint"))
    one_more = gr.Checkbox(label=say("inbox.one_more"))
    retire = gr.Checkbox(label=say("inbox.retire"))
    button = gr.Button(say("inbox.decide"), variant="primary", elem_classes=["narrow"])

    def entries() -> tuple[str, Any, str, str, Any]:
        found = site.inbox()
        first = found[0] if found else None
        picked = gr.update(choices=_choices(lead, found), value=first.item_id if first else None)
        return _held_up(lead), picked, *_shown(lead, first)

    def load(before: str, request: gr.Request) -> Any:
        lead.caller(request, "reviewer")
        if before:  # what a lead has typed or chosen outlives a look at another tab
            return gr.skip()
        now = in_force(lead)
        return *entries(), now.text, now.as_text(), "opened"

    def choose(item: str | None, on_screen: str, request: gr.Request) -> Any:
        lead.caller(request, "reviewer")
        if item and ShownTask.read(on_screen).item_id == item:
            return gr.skip()  # the same choice is heard again when its list loses the focus
        return _shown(lead, entry_of(site.store, site.project, item) if item else None)

    def rule(
        item: str | None, on_screen: str, kind: str, why: str, text: str, filled: str, votes: list[str], more: bool,
        out: bool, request: gr.Request,
    ) -> tuple[Any, ...]:  # fmt: skip
        person, seen = lead.caller(request, "reviewer"), ShownTask.read(on_screen)
        before = Loaded.read(filled)
        if not seen.item_id or item is None:
            raise Refusal(say("inbox.nothing"))
        if seen.item_id != item:
            raise Refusal(say("items.other"))
        if votes and not why.strip():
            raise Refusal(say("people.aside.why"))
        try:
            words_after, now = _rule(lead, person, seen, Wish(kind, why, out, votes, more), text, before)
        except AlreadyDecided as error:
            # The reason stays in its box: it may fit the next task, or be wanted elsewhere.
            gr.Warning(html.escape(say("inbox.already", name=error.handle)))
            return *entries(), text, filled, why, more, out
        except StaleVote:
            gr.Warning(html.escape(say("inbox.stale_vote")))
            task = _shown(lead, entry_of(site.store, site.project, item))
            return gr.skip(), gr.skip(), *task, text, filled, why, more, out
        return *entries(), words_after, now.as_text(), "", False, False

    task = [board, shown, aside]
    tab.select(refusable(load), opened, [held, pick, *task, words, loaded, opened], **event)
    pick.input(refusable(choose), [pick, shown], task, trigger_mode="always_last", **as_sent(event))
    done = button.click(
        refusable(rule), [pick, shown, verdict, note, words, loaded, aside, one_more, retire],
        [held, pick, *task, words, loaded, note, one_more, retire], **as_sent(event),
    )  # fmt: skip
    return GuidelineBox(words, loaded), done


def _rule(lead: LeadPage, person: Person, seen: ShownTask, wish: Wish, text: str, before: Loaded) -> tuple[str, Loaded]:
    """Only "unclear" makes a new version, and only when the lead changed the text; returns what the box then holds."""
    changed = wish.kind == "guideline_unclear" and bool(text.strip()) and not before.is_untouched(text)
    try:
        version = decide(
            lead.site.store, seen.item_id, wish.kind, wish.why, decided_by=person.id,
            new_guideline=text if changed else None, retire=wish.retire, aside=wish.aside, one_more=wish.one_more,
            seen=Seen(before.version if changed else None, seen.num_decisions),
        )  # fmt: skip
    except StaleGuideline as error:
        raise stale(lead, before, error) from error
    except (AlreadyDecided, StaleVote):
        raise
    except DataError as error:
        raise in_words(lead.texts, error) from error
    gr.Info(lead.say("inbox.decided.version", version=version) if changed else lead.say("inbox.decided"))
    if changed:
        return text, Loaded(version, text)
    if not before.is_untouched(text):
        return text, before
    now = in_force(lead)
    return now.text, now
