"""The lead's tab for people: who ranks, how much, how reliably; accounts are changed by admins only."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import gradio as gr

from preference_ui.app.dashboard import number
from preference_ui.app.refusal import Refusal, refusable
from preference_ui.errors import ConfigError, DataError
from preference_ui.people import create_annotator, get_annotator, list_annotators, update_annotator

if TYPE_CHECKING:
    from preference_ui.app.lead import LeadPage

_ROLES = ("annotator", "reviewer", "admin")


def _people_html(lead: LeadPage) -> str:
    raters = {r.annotator_id: r for r in lead.dashboard.figures()[1].raters}
    heads = ("name", "role", "active", "answers", "reliability")
    lines = []
    for person in list_annotators(lead.site.store):
        found = raters.get(person.id)
        cells = (
            person.handle,
            lead.texts[f"role.{person.role}"],
            "✓" if person.active else "–",
            str(found.votes if found else 0),
            number(found.beta) if found else "–",
        )
        lines.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th scope='col'>{html.escape(lead.say(f'people.{name}'))}</th>" for name in heads)
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="rlhf"><table class="people">{body}</table></div>'


def people_tab(lead: LeadPage, page: gr.Blocks, event: dict[str, Any]) -> None:
    """Add the tab's contents to a page that is being built."""
    roles = [(lead.texts[f"role.{role}"], role) for role in _ROLES]
    table = gr.HTML(apply_default_css=False)
    with gr.Row():
        with gr.Column():
            gr.Markdown(f"## {lead.say('people.new')}")
            with gr.Group():
                name = gr.Textbox(label=lead.say("people.name"), max_length=64)
                role = gr.Radio(roles, value="annotator", label=lead.say("people.role"))
                password = gr.Textbox(label=lead.say("people.password"), type="password", max_length=1000)
                add = gr.Button(lead.say("people.add"), variant="primary")
        with gr.Column():
            gr.Markdown(f"## {lead.say('people.edit')}")
            with gr.Group():
                who = gr.Dropdown([], label=lead.say("people.who"), interactive=True)
                new_role = gr.Radio(roles, value="annotator", label=lead.say("people.role"))
                active = gr.Checkbox(value=True, label=lead.say("people.active"))
                new_password = gr.Textbox(label=lead.say("people.new_password"), type="password", max_length=1000)
                change = gr.Button(lead.say("people.change"))

    def load(request: gr.Request) -> tuple[str, Any]:
        lead.caller(request, "reviewer")
        people = [(p.handle, p.id) for p in list_annotators(lead.site.store)]
        return _people_html(lead), gr.update(choices=people)

    def insert(handle: str, kind: str, secret: str, request: gr.Request) -> tuple[str, Any, str, str]:
        boss = lead.caller(request, "admin")
        try:
            person = create_annotator(
                lead.site.store, handle, role=kind, password=secret, locale=lead.locale, actor=boss.id
            )
        except (ConfigError, DataError) as error:
            raise Refusal(str(error)) from error
        gr.Info(html.escape(lead.say("people.added", name=person.handle)))
        return *load(request), "", ""

    def pick(person_id: str | None, request: gr.Request) -> Any:
        lead.caller(request, "reviewer")
        if person_id is None:
            return gr.skip()
        person = get_annotator(lead.site.store, person_id)
        return person.role, person.active

    def edit(person_id: str | None, kind: str, on: bool, secret: str, request: gr.Request) -> Any:
        boss = lead.caller(request, "admin")
        if person_id is None:
            raise Refusal(lead.say("people.nobody"))
        if person_id == boss.id and (kind != "admin" or not on):
            raise Refusal(lead.texts["error.role"])
        try:
            update_annotator(lead.site.store, person_id, actor=boss.id, role=kind, active=on, password=secret or None)
        except (ConfigError, DataError) as error:
            raise Refusal(str(error)) from error
        gr.Info(lead.say("people.changed"))
        return *load(request), ""

    page.load(refusable(load), None, [table, who], **event)
    who.input(refusable(pick), who, [new_role, active], **event)
    add.click(refusable(insert), [name, role, password], [table, who, name, password], **event)
    change.click(refusable(edit), [who, new_role, active, new_password], [table, who, new_password], **event)
