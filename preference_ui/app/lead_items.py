"""The lead's tab for items: find one, read all that was said about it, change its priority, retire it, take it back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from preference_ui.app.lead_votes import task_html
from preference_ui.app.refusal import Refusal, refusable
from preference_ui.errors import DataError
from preference_ui.items import STATES, ItemLine, change_item, find_items, get_item
from preference_ui.reviews import entry_of

if TYPE_CHECKING:
    from preference_ui.app.lead import LeadPage


def _label(lead: LeadPage, line: ItemLine) -> str:
    state = lead.say(f"items.{line.state}")
    parts = [line.opening, line.topic, state, lead.say("items.votes", done=line.done, needed=line.needed)]
    if line.kind == "gold":
        parts[2:] = [lead.say("items.gold"), state, lead.say("items.answers", done=line.done)]
    if line.priority:
        parts.append(lead.say("items.urgent", value=f"{line.priority:g}"))
    return " · ".join(filter(None, parts))


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

    def listed(words: str, kind: str, number: int, item_id: str | None = None) -> tuple[Any, int, str]:
        """The page of that number, or the last one; ``item_id`` stays chosen when it is on it."""
        try:
            page = find_items(site.store, site.project, text=words, state=kind, page=number)
        except DataError as error:
            raise Refusal(str(error)) from error
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

    def show(item_id: str | None, request: gr.Request) -> Any:
        lead.caller(request, "reviewer")
        line = get_item(site.store, site.project, item_id) if item_id else None
        entry = entry_of(site.store, site.project, item_id) if item_id else None
        if line is None or entry is None:
            return "", 0, False
        body = task_html(lead, entry.prompt, entry.responses, entry.votes, entry.skip_reasons)
        return body, line.priority, line.state == "retired"

    def change(
        item_id: str | None, value: float | None, out: bool, words: str, kind: str, number: float | None,
        request: gr.Request,
    ) -> tuple[Any, int, str]:  # fmt: skip
        person = lead.caller(request, "reviewer")
        if item_id is None:
            raise Refusal(say("items.nothing"))
        try:
            change_item(site.store, site.project, item_id, actor=person.id, priority=value, retired=out)
        except DataError as error:
            raise Refusal(str(error)) from error
        gr.Info(say("items.changed"))
        return listed(words, kind, max(1, int(number or 1)), item_id)

    query, results = [text, state], [found, page_number, count]
    for trigger in (tab.select, search.click, text.submit, state.input):
        trigger(refusable(first), query, results, **event)
    page_number.input(refusable(turn), [*query, page_number], results, **event)
    found.change(refusable(show), found, [board, priority, retired], **event)
    save.click(refusable(change), [found, priority, retired, *query, page_number], results, **event)
