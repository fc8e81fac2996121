"""The whole web application: our routes in front, Gradio mounted behind our sessions."""

from __future__ import annotations

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse, Response
from fastapi.staticfiles import StaticFiles

from preference_ui.app.api import api_routes
from preference_ui.app.ask import AskTab
from preference_ui.app.dashboard import Dashboard
from preference_ui.app.hardened import guarded_app, mount_page
from preference_ui.app.lead import LeadPage
from preference_ui.app.login import login_routes
from preference_ui.app.pages import annotator_page, page_head
from preference_ui.app.site import STATIC, Site
from preference_ui.app.takeaway import takeaway_routes
from preference_ui.app.uploads import upload_routes
from preference_ui.i18n import LOCALES, translate
from preference_ui.live import LivePolicy


def build_app(site: Site, policy: LivePolicy | None = None) -> FastAPI:
    """Assemble the application for one store and project; with ``policy`` people may ask it for candidates."""
    app = guarded_app("preferences", site.address)

    @app.get("/")
    def home(request: Request) -> Response:
        person = site.visitor(request)
        target = "/login" if person is None else f"/{site.locale(request, person)}/"
        return RedirectResponse(target, status_code=303)

    @app.get("/favicon.ico")
    def icon() -> Response:
        return RedirectResponse("/static/icon.svg", status_code=301)

    app.include_router(login_routes(site))
    app.include_router(api_routes(site))
    app.include_router(takeaway_routes(site))
    app.include_router(upload_routes(site))
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    dashboard = Dashboard(site)
    for locale in LOCALES:
        _mount(app, site, LeadPage(site, locale, dashboard).build(), f"/lead/{locale}", locale, "reviewer")
        ask = AskTab(site, locale, policy) if policy is not None else None
        _mount(app, site, annotator_page(locale, ask), f"/{locale}", locale, "annotator")
    return app


def _mount(app: FastAPI, site: Site, page: gr.Blocks, path: str, locale: str, role: str) -> None:
    ranks = {"annotator": 0, "reviewer": 1, "admin": 2}

    async def who(request: Request) -> str | None:
        # Gradio calls it on the event loop, and the database may have to wait.
        person = await run_in_threadpool(site.visitor, request)
        return person.id if person is not None and ranks[person.role] >= ranks[role] else None

    title = f"{translate(locale, 'app.title')} · {site.project}"
    mount_page(app, page, path, who=who, head=page_head(locale, title))
