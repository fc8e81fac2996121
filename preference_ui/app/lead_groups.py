"""Groups on the tab for people: which tasks somebody gets, and an admin's box that changes it."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from preference_ui.app.boxes import Shown, note_box
from preference_ui.app.refusal import Refusal, in_words, refusable
from preference_ui.errors import DataError, StaleAccount
from preference_ui.groups import MAX_CHARACTERS, MAX_GROUPS, groups_of, parse_groups, words_in_use
from preference_ui.memberships import set_groups
from preference_ui.people import get_annotator
from preference_ui.projects import load_project

if TYPE_CHECKING:
    from preference_ui.app.lead import LeadPage


@dataclass(frozen=True)
class ShownGroups(Shown):
    """Whose groups the box was filled with."""

    person_id: str = ""
    groups: str = ""


@dataclass(frozen=True)
class GroupsBox:
    """The components of the section."""

    used: gr.HTML
    words: gr.Textbox
    save: gr.Button
    shown: gr.Textbox


def groups_group(lead: LeadPage) -> GroupsBox:
    """Add the section to a page that is being built."""
    gr.Markdown(f"## {lead.say('people.groups')}\n\n{lead.say('people.groups.hint')}")
    used = gr.HTML(apply_default_css=False)
    with gr.Group():
        words = gr.Textbox(label=lead.say("people.groups.words"), max_length=(MAX_CHARACTERS + 2) * MAX_GROUPS)
        save = gr.Button(lead.say("people.groups.save"))
    return GroupsBox(used, words, save, note_box())


def groups_events(
    lead: LeadPage,
    box: GroupsBox,
    tab: gr.Tab,
    who: gr.Dropdown,
    table: tuple[list[Any], Callable[[], tuple[Any, ...]]],
    event: dict[str, Any],
) -> None:
    """Let the section follow the person who is chosen, and change what its box shows of whom it shows it.

    Args:
        table: the components of the tab's table, and what reads them anew.
    """
    store, project = lead.site.store, lead.site.project

    def in_use() -> list[str]:
        with store.read() as session:
            return words_in_use(session, load_project(session, project).id)

    def load(request: gr.Request) -> str:
        lead.caller(request, "reviewer")
        names = ", ".join(in_use())
        words = lead.say("people.groups.used", names=names) if names else lead.say("people.groups.unused")
        return f'<p class="rlhf hint">{html.escape(words)}</p>'

    def filled(person_id: str) -> tuple[str, str]:
        with store.read() as session:
            words = ", ".join(groups_of(session, load_project(session, project).id, person_id))
        return words, ShownGroups(person_id, words).as_text()

    def pick(person_id: str | None, before: str, request: gr.Request) -> Any:
        lead.caller(request, "reviewer")
        is_new = person_id is not None and ShownGroups.read(before).person_id != person_id
        return filled(str(person_id)) if is_new else gr.skip()

    def save(person_id: str | None, before: str, words: str, request: gr.Request) -> tuple[Any, ...]:
        boss, seen = lead.caller(request, "admin"), ShownGroups.read(before)
        if person_id is None:
            raise Refusal(lead.say("people.nobody"))
        if seen.person_id != person_id:
            raise Refusal(lead.say("people.other"))
        try:
            person = get_annotator(store, person_id)
            now = set_groups(
                store, project, person.id, parse_groups(words), actor=boss.id, seen=parse_groups(seen.groups)
            )
        except StaleAccount as error:
            gr.Warning(html.escape(lead.say("people.stale", name=error.handle)))
            return *table[1](), *filled(person_id)
        except DataError as error:
            raise in_words(lead.texts, error) from error
        gr.Info(html.escape(lead.say("people.groups.saved", name=person.handle)))
        unknown = sorted(set(now) - set(in_use()))
        if unknown:
            gr.Warning(html.escape(lead.say("people.groups.unknown", names=", ".join(unknown))))
        return *table[1](), *filled(person_id)

    tab.select(refusable(load), None, box.used, **event)
    who.input(
        refusable(pick), [who, box.shown], [box.words, box.shown], trigger_mode="always_last", **event
    )  # fmt: skip
    box.save.click(
        refusable(save), [who, box.shown, box.words], [*table[0], box.words, box.shown], **event
    )  # fmt: skip
