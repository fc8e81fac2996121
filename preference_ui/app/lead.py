"""The lead's pages: overview, disagreements, items, data, people, guidelines, settings.

Each handler checks the role itself. These pages are Gradio but for how files come in and go out. Text of models and
people enters only through ``preference_ui.render``.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from preference_ui.app.dashboard import POLL_SECONDS, Dashboard, Look
from preference_ui.app.lead_data import data_tab
from preference_ui.app.lead_guideline import follow, guideline_tab
from preference_ui.app.lead_inbox import inbox_tab
from preference_ui.app.lead_items import items_tab
from preference_ui.app.lead_people import people_tab
from preference_ui.app.lead_settings import settings_form
from preference_ui.app.pages import widget
from preference_ui.app.refusal import Refusal, refusable
from preference_ui.app.site import Site
from preference_ui.auth import require_role
from preference_ui.errors import AuthError, DataError
from preference_ui.i18n import catalogue, translate
from preference_ui.people import Person, get_annotator

_EVENT: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal", "concurrency_limit": None}


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
                with gr.Tab(self.say("inbox")) as tab:
                    draft, decided = inbox_tab(self, tab, _EVENT)
                with gr.Tab(self.say("items")) as tab:
                    items_tab(self, tab, _EVENT)
                with gr.Tab(self.say("data")) as tab:
                    data_tab(self, tab, _EVENT)
                with gr.Tab(self.say("people")) as tab:
                    people_tab(self, tab, _EVENT)
                with gr.Tab(self.say("guideline")):
                    text, published = guideline_tab(self, page, _EVENT)
                with gr.Tab(self.say("settings")):
                    settings_form(self, page, _EVENT)
            follow(self, decided, text, _EVENT)
            follow(self, published, draft, _EVENT)
        page.queue(api_open=False, default_concurrency_limit=4)
        return page

    def _overview(self, page: gr.Blocks) -> None:
        refresh = gr.Button(self.say("refresh"), size="sm", elem_classes=["narrow"])
        status, board = gr.HTML(apply_default_css=False), gr.HTML(apply_default_css=False)
        timer = gr.Timer(POLL_SECONDS, active=False)

        def show(request: gr.Request) -> tuple[str, str, Any]:
            self.caller(request, "reviewer")
            look = self.dashboard.look()
            return self._status(look), self.dashboard.page(self.locale, look), gr.Timer(active=look.running)

        def renew(request: gr.Request) -> tuple[str, Any]:
            self.caller(request, "reviewer")
            look = self.dashboard.look(renew=True)
            return self._status(look), gr.Timer(active=True)

        def tick(request: gr.Request) -> Any:
            return gr.skip() if self.dashboard.look().running else show(request)

        whole = [status, board, timer]
        page.load(refusable(show), None, whole, **_EVENT)
        refresh.click(refusable(renew), None, [status, timer], **_EVENT)
        timer.tick(refusable(tick), None, whole, **_EVENT | {"show_progress": "hidden"})

    def _status(self, look: Look) -> str:
        return self.dashboard.status(self.locale, look)
