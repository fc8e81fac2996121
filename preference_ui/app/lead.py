"""The lead's pages: overview, disagreements, people, guidelines, settings. Each handler checks the role again itself.

These pages are Gradio throughout. Text of models and people enters only through ``preference_ui.render``.
"""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from preference_ui.app.dashboard import Dashboard, number, percent
from preference_ui.app.lead_settings import settings_form
from preference_ui.app.pages import widget
from preference_ui.app.refusal import Refusal, refusable
from preference_ui.app.site import Site
from preference_ui.auth import require_role
from preference_ui.errors import AuthError, ConfigError, DataError
from preference_ui.i18n import catalogue, translate
from preference_ui.people import Person, create_annotator, get_annotator, list_annotators, update_annotator
from preference_ui.projects import get_guideline, get_project, publish_guideline
from preference_ui.render import direction, markdown_html
from preference_ui.reviews import VERDICTS, InboxEntry, decide, inbox

_ROLES = ("annotator", "reviewer", "admin")
_EVENT: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal", "concurrency_limit": None}


def safe_block(text: str) -> str:
    """Untrusted markdown in a box that it cannot leave."""
    return f'<div class="untrusted" dir="{direction(text)}">{markdown_html(text)}</div>'


class LeadPage:
    """The lead's page in one language."""

    def __init__(self, site: Site, locale: str, dashboard: Dashboard) -> None:
        self.site, self.locale, self.dashboard = site, locale, dashboard
        self.texts = catalogue(locale)

    def say(self, key: str, **values: object) -> str:
        """One text in this page's language."""
        return translate(self.locale, f"lead.{key}", **values)

    def caller(self, request: gr.Request, role: str) -> Person:
        """Who sent an event, insisting on a role.

        Raises:
            Refusal: the role is too low, in the page's language.
        """
        try:
            return require_role(get_annotator(self.site.store, str(request.username)), role)
        except (AuthError, DataError) as error:
            raise Refusal(self.texts["error.role"]) from error

    def build(self) -> gr.Blocks:
        """The page."""
        with gr.Blocks(title=self.say("title"), fill_width=True, analytics_enabled=False) as page:
            widget("header")
            with gr.Tabs():
                with gr.Tab(self.say("dashboard")):
                    self._overview(page)
                with gr.Tab(self.say("inbox")):
                    self._inbox(page)
                with gr.Tab(self.say("people")):
                    self._people(page)
                with gr.Tab(self.say("guideline")):
                    self._guideline(page)
                with gr.Tab(self.say("settings")):
                    settings_form(self, page, _EVENT)
        page.queue(api_open=False, default_concurrency_limit=4)
        return page

    # ---- overview ------------------------------------------------------------------------------------------

    def _overview(self, page: gr.Blocks) -> None:
        refresh = gr.Button(self.say("refresh"), size="sm", elem_classes=["narrow"])
        board = gr.HTML(apply_default_css=False)

        def show(request: gr.Request) -> str:
            self.caller(request, "reviewer")
            return self.dashboard.render(self.locale)

        page.load(refusable(show), None, board, **_EVENT)
        refresh.click(refusable(show), None, board, **_EVENT)

    # ---- disagreements -------------------------------------------------------------------------------------

    def _entries(self) -> list[InboxEntry]:
        return inbox(self.site.store, self.site.project)

    def _choices(self, entries: list[InboxEntry]) -> list[tuple[str, str]]:
        choices = []
        for entry in entries:
            reason = (
                self.say("inbox.skipped", count=len(entry.skip_reasons))
                if entry.skip_reasons
                else self.say("inbox.agreement", value=percent(entry.agreement))
            )
            choices.append((f"{entry.prompt[-1].content[:60]} · {reason}", entry.item_id))
        return choices

    def _entry_html(self, entry: InboxEntry) -> str:
        names = {response: chr(ord("A") + i) for i, (response, _) in enumerate(entry.responses)}
        votes = []
        for vote in entry.votes:
            order = " > ".join(" = ".join(names.get(r, "?") for r in tier) for tier in vote.tiers)
            why = safe_block(vote.rationale) if vote.rationale else ""
            votes.append(f"<li><b>{html.escape(vote.handle)}</b> <span class='badge'>{order}</span>{why}</li>")
        votes += [f"<li class='hint'>{html.escape(reason)}</li>" for reason in entry.skip_reasons]
        cards = "".join(
            f'<article class="card"><header><h2><span class="letter">{names[response]}</span></h2></header>'
            f'<div class="card-body">{safe_block(text)}</div></article>'
            for response, text in entry.responses
        )
        turns = "".join(f'<div class="turn turn-{m.role}">{safe_block(m.content)}</div>' for m in entry.prompt)
        return (
            f'<div class="rlhf decision"><ul class="votes">{"".join(votes)}</ul>'
            f'<section class="prompt">{turns}</section>'
            f'<div class="cards">{cards}</div></div>'
        )

    def _inbox(self, page: gr.Blocks) -> None:
        pick = gr.Dropdown([], label=self.say("inbox.pick"), interactive=True, filterable=False)
        shown = gr.HTML(apply_default_css=False)
        verdict = gr.Radio(
            [(self.say(f"inbox.{name}"), name) for name in VERDICTS], value=VERDICTS[0], label=self.say("inbox.verdict")
        )
        note = gr.Textbox(label=self.say("inbox.note"), lines=2, max_length=5000)
        words = gr.Textbox(label=self.say("inbox.new_guideline"), lines=8, max_length=100_000)
        button = gr.Button(self.say("inbox.decide"), variant="primary", elem_classes=["narrow"])

        def load(request: gr.Request) -> tuple[Any, str, str]:
            self.caller(request, "reviewer")
            entries = self._entries()
            first = entries[0] if entries else None
            empty = f'<p class="rlhf">{html.escape(self.say("inbox.empty"))}</p>'
            project = get_project(self.site.store, self.site.project)
            return (
                gr.update(choices=self._choices(entries), value=first.item_id if first else None),
                self._entry_html(first) if first else empty,
                get_guideline(self.site.store, project.id),
            )

        def choose(item: str | None, request: gr.Request) -> str:
            self.caller(request, "reviewer")
            entry = next((e for e in self._entries() if e.item_id == item), None)
            return self._entry_html(entry) if entry else ""

        def rule(item: str | None, kind: str, why: str, text: str, request: gr.Request) -> tuple[Any, str, str, str]:
            person = self.caller(request, "reviewer")
            entry = next((e for e in self._entries() if e.item_id == item), None)
            if entry is not None and item is not None:
                self._rule(person, item, kind, why, text)
            return *load(request), ""

        page.load(refusable(load), None, [pick, shown, words], **_EVENT)
        pick.input(refusable(choose), pick, shown, **_EVENT)
        button.click(refusable(rule), [pick, verdict, note, words], [pick, shown, words, note], **_EVENT)

    def _rule(self, person: Person, item: str, kind: str, why: str, text: str) -> None:
        """Only "unclear" makes a new version, and only when the text was changed."""
        store = self.site.store
        project = get_project(store, self.site.project)
        changed = kind == "guideline_unclear" and text.strip() and text != get_guideline(store, project.id)
        try:
            version = decide(store, item, kind, why, decided_by=person.id, new_guideline=text if changed else None)
        except DataError as error:
            raise Refusal(str(error)) from error
        gr.Info(self.say("inbox.decided.version", version=version) if changed else self.say("inbox.decided"))

    # ---- people --------------------------------------------------------------------------------------------

    def _people_html(self) -> str:
        raters = {r.annotator_id: r for r in self.dashboard.figures()[1].raters}
        heads = ("name", "role", "active", "answers", "reliability")
        lines = []
        for person in list_annotators(self.site.store):
            found = raters.get(person.id)
            cells = (
                person.handle,
                self.texts[f"role.{person.role}"],
                "✓" if person.active else "–",
                str(found.votes if found else 0),
                number(found.beta) if found else "–",
            )
            lines.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
        head = "".join(f"<th scope='col'>{html.escape(self.say(f'people.{name}'))}</th>" for name in heads)
        body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
        return f'<div class="rlhf"><table class="people">{body}</table></div>'

    def _people(self, page: gr.Blocks) -> None:
        roles = [(self.texts[f"role.{role}"], role) for role in _ROLES]
        table = gr.HTML(apply_default_css=False)
        with gr.Row():
            with gr.Column():
                gr.Markdown(f"## {self.say('people.new')}")
                with gr.Group():
                    name = gr.Textbox(label=self.say("people.name"), max_length=64)
                    role = gr.Radio(roles, value="annotator", label=self.say("people.role"))
                    password = gr.Textbox(label=self.say("people.password"), type="password", max_length=1000)
                    add = gr.Button(self.say("people.add"), variant="primary")
            with gr.Column():
                gr.Markdown(f"## {self.say('people.edit')}")
                with gr.Group():
                    who = gr.Dropdown([], label=self.say("people.who"), interactive=True)
                    new_role = gr.Radio(roles, value="annotator", label=self.say("people.role"))
                    active = gr.Checkbox(value=True, label=self.say("people.active"))
                    new_password = gr.Textbox(label=self.say("people.new_password"), type="password", max_length=1000)
                    change = gr.Button(self.say("people.change"))

        def load(request: gr.Request) -> tuple[str, Any]:
            self.caller(request, "reviewer")
            people = [(p.handle, p.id) for p in list_annotators(self.site.store)]
            return self._people_html(), gr.update(choices=people)

        def insert(handle: str, kind: str, secret: str, request: gr.Request) -> tuple[str, Any, str, str]:
            boss = self.caller(request, "admin")
            try:
                person = create_annotator(
                    self.site.store, handle, role=kind, password=secret, locale=self.locale, actor=boss.id
                )
            except (ConfigError, DataError) as error:
                raise Refusal(str(error)) from error
            gr.Info(html.escape(self.say("people.added", name=person.handle)))
            return *load(request), "", ""

        def pick(person_id: str | None, request: gr.Request) -> Any:
            self.caller(request, "reviewer")
            if person_id is None:
                return gr.skip()
            person = get_annotator(self.site.store, person_id)
            return person.role, person.active

        def edit(person_id: str | None, kind: str, on: bool, secret: str, request: gr.Request) -> Any:
            boss = self.caller(request, "admin")
            if person_id is None:
                raise Refusal(self.say("people.nobody"))
            if person_id == boss.id and (kind != "admin" or not on):
                raise Refusal(self.texts["error.role"])
            try:
                update_annotator(
                    self.site.store, person_id, actor=boss.id, role=kind, active=on, password=secret or None
                )
            except (ConfigError, DataError) as error:
                raise Refusal(str(error)) from error
            gr.Info(self.say("people.changed"))
            return *load(request), ""

        page.load(refusable(load), None, [table, who], **_EVENT)
        who.input(refusable(pick), who, [new_role, active], **_EVENT)
        add.click(refusable(insert), [name, role, password], [table, who, name, password], **_EVENT)
        change.click(refusable(edit), [who, new_role, active, new_password], [table, who, new_password], **_EVENT)

    # ---- guidelines ----------------------------------------------------------------------------------------

    def _guideline(self, page: gr.Blocks) -> None:
        with gr.Row():
            with gr.Column():
                words = gr.Textbox(label=self.say("guideline.text"), lines=20, max_length=100_000)
                reason = gr.Textbox(label=self.say("guideline.reason"), max_length=2000)
                publish = gr.Button(self.say("guideline.publish"), variant="primary", elem_classes=["narrow"])
            with gr.Column():
                gr.Markdown(f"## {self.say('guideline.preview')}")
                preview = gr.HTML(apply_default_css=False)

        def show(text: str) -> str:
            return f'<div class="rlhf reading-page">{safe_block(text)}</div>'

        def load(request: gr.Request) -> tuple[str, str]:
            self.caller(request, "reviewer")
            text = get_guideline(self.site.store, get_project(self.site.store, self.site.project).id)
            return text, show(text)

        def save(text: str, why: str, request: gr.Request) -> str:
            person = self.caller(request, "reviewer")
            project = get_project(self.site.store, self.site.project)
            try:
                version = publish_guideline(self.site.store, project.id, text, reason=why, actor=person.id)
            except DataError as error:
                raise Refusal(str(error)) from error
            gr.Info(self.say("guideline.published", version=version))
            return ""

        page.load(refusable(load), None, [words, preview], **_EVENT)
        words.change(show, words, preview, **_EVENT | {"show_progress": "hidden"})
        publish.click(refusable(save), [words, reason], reason, **_EVENT)
