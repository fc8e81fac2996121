"""The lead's tab for items: find one, read all that was said about it, change its priority, retire it, take it back."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from preference_ui.app.boxes import Shown, as_sent, note_box
from preference_ui.app.lead_votes import task_html
from preference_ui.app.refusal import Refusal, in_words, refusable
from preference_ui.errors import DataError, StaleItem
from preference_ui.items import STATES, ItemLine, change_item, find_items, get_item
from preference_ui.reviews import entry_of

if TYPE_CHECKING:
    from preference_ui.app.lead import LeadPage


def _label(lead: LeadPage, line: ItemLine) -> str:
    state = lead.say(f"items.{line.state}")
    group = lead.say("items.group", name=line.group) if line.group else ""
    parts = [line.opening, line.topic, group, state, lead.say("items.votes", done=line.done, needed=line.needed)]
    if line.kind == "gold":
        parts[3:] = [lead.say("items.gold"), state, lead.say("items.answers", done=line.done)]
    if line.priority:
        parts.append(lead.say("items.urgent", value=f"{line.priority:g}"))
    return " · ".join(filter(None, parts))


@dataclass(frozen=True)
class ShownItem(Shown):
    """The item whose priority and state the boxes hold, and as what."""

    item_id: str = ""
    priority: float = 0.0
    retired: bool = False


def boxes(line: ItemLine) -> tuple[float, bool, str]:
    """Values of the boxes, and the note of what they hold."""
    retired = line.state == "retired"
    return line.priority, retired, ShownItem(line.item_id, line.priority, retired).as_text()


def items_tab(lead: LeadPage, tab: gr.Tab, event: dict[str, Any]) -> None:
    """Add the contents to a tab that is being built. Nothing is read before somebody opens it."""
    site, say = lead.site, lead.say
    with gr.Row():
        with gr.Column(scale=2):
            with gr.Row():
                text = gr.Textbox(label=say("items.search"), max_length=200)
                state = gr.Dropdown(
                    [(say(f"items.{name}"), name) for name in STATES], value="all", label=say("items.state"),
                    filterable=False,
                )  # fmt: skip
            search = gr.Button(say("items.find"), variant="primary", elem_classes=["narrow"])
            found = gr.Radio([], label=say("items.found"), elem_classes=["item-list"])
            with gr.Row():
                page_number = gr.Number(1, label=say("items.page"), precision=0, minimum=1)
                count = gr.Textbox(label=say("items.count"), interactive=False)
        with gr.Column(scale=3):
            board = gr.HTML(apply_default_css=False)
            with gr.Group():
                priority = gr.Number(0, label=say("items.priority"))
                retired = gr.Checkbox(label=say("items.retired"))
                save = gr.Button(say("items.save"))
            shown = note_box()

    def listed(words: str, kind: str, number: int, item_id: str | None = None) -> tuple[Any, int, str]:
        """The page of that number, or the last one; ``item_id`` stays chosen when it is on it."""
        try:
            page = find_items(site.store, site.project, text=words, state=kind, page=number)
        except DataError as error:
            raise in_words(lead.texts, error) from error
        if number > page.num_pages:
            return listed(words, kind, page.num_pages, item_id)
        chosen = item_id if any(line.item_id == item_id for line in page.lines) else None
        choices = [(_label(lead, line), line.item_id) for line in page.lines]
        total = say("items.total", total=page.total, page=number, pages=page.num_pages)
        return gr.update(choices=choices, value=chosen), number, total

    def first(words: str, kind: str, request: gr.Request) -> tuple[Any, int, str]:
        lead.caller(request, "reviewer")
        return listed(words, kind, 1)

    def turn(words: str, kind: str, number: float | None, request: gr.Request) -> Any:
        lead.caller(request, "reviewer")
        return gr.skip() if number is None else listed(words, kind, max(1, int(number)))

    def show(item_id: str | None, request: gr.Request) -> tuple[Any, ...]:
        lead.caller(request, "reviewer")
        line = get_item(site.store, site.project, item_id) if item_id else None
        entry = entry_of(site.store, site.project, item_id) if item_id else None
        if line is None or entry is None:
            return "", 0, False, ""
        return task_html(lead, entry.prompt, entry.responses, entry.votes, entry.skip_reasons), *boxes(line)

    def change(
        item_id: str | None, before: str, value: float | None, out: bool, words: str, kind: str, number: float | None,
        request: gr.Request,
    ) -> tuple[Any, ...]:  # fmt: skip
        person, seen = lead.caller(request, "reviewer"), ShownItem.read(before)
        if item_id is None:
            raise Refusal(say("items.nothing"))
        if seen.item_id != item_id:
            raise Refusal(say("items.other"))
        try:
            change_item(
                site.store, site.project, item_id, actor=person.id, seen=(seen.priority, seen.retired),
                priority=value if value != seen.priority else None, retired=out if out != seen.retired else None,
            )  # fmt: skip
        except StaleItem:
            gr.Warning(html.escape(say("items.stale")))
        except DataError as error:
            raise in_words(lead.texts, error) from error
        else:
            gr.Info(say("items.changed"))
        line = get_item(site.store, site.project, item_id)
        return *listed(words, kind, max(1, int(number or 1)), item_id), *(boxes(line) if line else (0, False, ""))

    query, results = [text, state], [found, page_number, count]
    for trigger in (tab.select, search.click, text.submit, state.input):
        trigger(refusable(first), query, results, **event)
    page_number.input(refusable(turn), [*query, page_number], results, **event)
    # The newest choice counts: without it one made while an answer is on its way would be dropped.
    found.change(
        refusable(show), found, [board, priority, retired, shown], trigger_mode="always_last", **as_sent(event)
    )  # fmt: skip
    save.click(
        refusable(change), [found, shown, priority, retired, *query, page_number],
        [*results, priority, retired, shown], **as_sent(event),
    )  # fmt: skip
