"""The lead's tab for people: who ranks, how much, how reliably; accounts are changed by admins only."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from preference_ui.app.boxes import Shown, as_sent, note_box
from preference_ui.app.dashboard import POLL_SECONDS, Look, number
from preference_ui.app.lead_groups import groups_events, groups_group
from preference_ui.app.lead_round import Ruling, round_group, round_words
from preference_ui.app.refusal import Refusal, in_words, refusable
from preference_ui.errors import ConfigError, DataError, StaleAccount
from preference_ui.groups import groups_by_person
from preference_ui.people import Person, create_annotator, get_annotator, list_annotators, update_annotator
from preference_ui.projects import load_project
from preference_ui.qualification import standings
from preference_ui.set_aside import restore, set_aside, vote_counts

if TYPE_CHECKING:
    from preference_ui.app.lead import LeadPage

_ROLES = ("annotator", "reviewer", "admin")


@dataclass(frozen=True)
class ShownPerson(Shown):
    """Whose role and state the boxes hold, and as what."""

    person_id: str = ""
    role: str = ""
    active: bool = True


def _people_html(lead: LeadPage, look: Look) -> str:
    raters = {r.annotator_id: r for r in look.figures.report.raters} if look.figures else {}
    with lead.site.store.read() as session:
        project = load_project(session, lead.site.project)
        rounds = standings(session, project) if project.settings.qualify_items else {}
        groups = groups_by_person(session, project.id)
    heads = ("name", "role", "active", "answers", "reliability", *(["groups"] if groups else []), "round")
    lines = []
    for person in list_annotators(lead.site.store):
        found = raters.get(person.id)
        cells = (
            person.handle,
            lead.texts[f"role.{person.role}"],
            "✓" if person.active else "–",
            "–" if look.figures is None else str(found.votes if found else 0),
            number(found.beta) if found else "–",
            *([", ".join(groups.get(person.id, ())) or "–"] if groups else []),
            round_words(lead, rounds.get(person.id) if person.role == "annotator" else None),
        )
        lines.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th scope='col'>{html.escape(lead.say(f'people.{name}'))}</th>" for name in heads)
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    status = lead.dashboard.status(lead.locale, look)
    return f'<div class="rlhf">{status}<table class="people">{body}</table></div>'


def _table(lead: LeadPage, *, renew: bool = False) -> tuple[str, Any]:
    """The table with the figures that there are, and the timer that asks for later ones."""
    look = lead.dashboard.look(renew=renew)
    return _people_html(lead, look), gr.Timer(active=look.running)


def people_tab(lead: LeadPage, tab: gr.Tab, event: dict[str, Any]) -> None:
    """Add the contents to a tab that is being built. Nothing is read before somebody opens it."""
    roles = [(lead.texts[f"role.{role}"], role) for role in _ROLES]
    table, asked = gr.HTML(apply_default_css=False), note_box()
    shown, timer = note_box(), gr.Timer(POLL_SECONDS, active=False)
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
            groups = groups_group(lead)
            gr.Markdown(f"## {lead.say('people.aside')}\n\n{lead.say('people.aside.hint')}")
            with gr.Group():
                why = gr.Textbox(label=lead.say("people.aside.reason"), max_length=2000)
                ask = gr.Button(lead.say("people.aside.ask"))
                sure = gr.Button("", variant="stop", visible=False)
                undo = gr.Button(lead.say("people.aside.undo"))
            round_buttons = round_group(lead)

    def load(request: gr.Request) -> tuple[str, Any, Any]:
        lead.caller(request, "reviewer")
        people = [(p.handle, p.id) for p in list_annotators(lead.site.store)]
        return *_table(lead), gr.update(choices=people)

    def tick(request: gr.Request) -> Any:
        lead.caller(request, "reviewer")
        return gr.skip() if lead.dashboard.look().running else _table(lead)

    def insert(handle: str, kind: str, secret: str, request: gr.Request) -> tuple[str, Any, Any, str, str]:
        boss = lead.caller(request, "admin")
        try:
            person = create_annotator(
                lead.site.store, handle, role=kind, password=secret, locale=lead.locale, actor=boss.id
            )
        except (ConfigError, DataError) as error:
            raise in_words(lead.texts, error) from error
        gr.Info(html.escape(lead.say("people.added", name=person.handle)))
        return *load(request), "", ""

    def pick(person_id: str | None, before: str, request: gr.Request) -> Any:
        lead.caller(request, "reviewer")
        # A choice is heard again when its list loses the focus; what was typed meanwhile stays.
        is_new = person_id is not None and ShownPerson.read(before).person_id != person_id
        return boxes(str(person_id)) if is_new else gr.skip()

    def boxes(person_id: str) -> tuple[str, bool, str]:
        person = get_annotator(lead.site.store, person_id)
        return person.role, person.active, ShownPerson(person.id, person.role, person.active).as_text()

    def edit(
        person_id: str | None, before: str, kind: str, on: bool, secret: str, request: gr.Request
    ) -> tuple[Any, ...]:  # fmt: skip
        boss, seen = lead.caller(request, "admin"), ShownPerson.read(before)
        if person_id is None:
            raise Refusal(lead.say("people.nobody"))
        if seen.person_id != person_id:
            raise Refusal(lead.say("people.other"))
        if person_id == boss.id and (kind != "admin" or not on):
            raise Refusal(lead.texts["error.role"])
        role, active = kind if kind != seen.role else None, on if on != seen.active else None
        was = replace(get_annotator(lead.site.store, person_id), role=seen.role, active=seen.active)
        try:
            update_annotator(
                lead.site.store, person_id, actor=boss.id, role=role, active=active, password=secret or None, seen=was
            )
        except StaleAccount as error:
            gr.Warning(html.escape(lead.say("people.stale", name=error.handle)))
            return *load(request), *boxes(person_id), secret
        except (ConfigError, DataError) as error:
            raise in_words(lead.texts, error) from error
        gr.Info(lead.say("people.changed"))
        return *load(request), *boxes(person_id), ""

    def chosen(person_id: str | None, request: gr.Request) -> tuple[Person, Person]:
        """The admin who asks, and the person chosen."""
        boss = lead.caller(request, "admin")
        if person_id is None:
            raise Refusal(lead.say("people.nobody"))
        return boss, get_annotator(lead.site.store, person_id)

    def confirm(person_id: str | None, reason: str, request: gr.Request) -> Any:
        _, person = chosen(person_id, request)
        if not reason.strip():
            raise Refusal(lead.say("people.aside.why"))
        count = vote_counts(lead.site.store, lead.site.project, person.id).standing
        if not count:
            raise Refusal(lead.say("people.aside.none"))
        text = lead.say("people.aside.confirm", count=count, name=person.handle)
        return gr.update(value=text, visible=True), person.id

    def put_aside(person_id: str | None, asked_for: str, reason: str, request: gr.Request) -> Any:
        boss, person = chosen(person_id, request)
        if person.id != asked_for:  # the button names one person
            raise Refusal(lead.say("people.aside.other"))
        try:
            count = set_aside(lead.site.store, lead.site.project, person.id, reason, actor=boss.id)
        except DataError as error:
            raise in_words(lead.texts, error) from error
        gr.Info(html.escape(lead.say("people.aside.done", count=count, name=person.handle)))
        return *_table(lead, renew=True), "", gr.update(visible=False), ""

    def take_back(person_id: str | None, request: gr.Request) -> Any:
        boss, person = chosen(person_id, request)
        count = restore(lead.site.store, lead.site.project, person.id, actor=boss.id)
        if not count:
            raise Refusal(lead.say("people.aside.none"))
        gr.Info(html.escape(lead.say("people.aside.undone", count=count, name=person.handle)))
        return _table(lead, renew=True)

    tab.select(refusable(load), None, [table, timer, who], **event)
    timer.tick(refusable(tick), None, [table, timer], **event | {"show_progress": "hidden"})
    # The newest choice counts: without it one made while an answer is on its way would be dropped.
    who.input(refusable(pick), [who, shown], [new_role, active, shown], trigger_mode="always_last", **as_sent(event))
    ask.click(refusable(confirm), [who, why], [sure, asked], **as_sent(event))
    sure.click(refusable(put_aside), [who, asked, why], [table, timer, why, sure, asked], **as_sent(event))
    undo.click(refusable(take_back), who, [table, timer], **as_sent(event))

    groups_events(lead, groups, tab, who, ([table, timer], lambda: _table(lead)), event)

    def ruling(act: Ruling, done: str) -> Callable[..., tuple[str, Any]]:
        def rule(person_id: str | None, request: gr.Request) -> tuple[str, Any]:
            boss, person = chosen(person_id, request)
            try:
                act(lead.site.store, lead.site.project, person.id, actor=boss.id)
            except DataError as error:
                raise in_words(lead.texts, error) from error
            gr.Info(html.escape(lead.say(done, name=person.handle)))
            return _table(lead)

        return rule

    for button, act, done in round_buttons:
        button.click(refusable(ruling(act, done)), who, [table, timer], **as_sent(event))
    add.click(refusable(insert), [name, role, password], [table, timer, who, name, password], **event)
    change.click(
        refusable(edit), [who, shown, new_role, active, new_password],
        [table, timer, who, new_role, active, shown, new_password], **as_sent(event),
    )  # fmt: skip
