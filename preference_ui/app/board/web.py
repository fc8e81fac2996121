"""The board's web application: a door with a token, and a Gradio page behind the same guard as the ranking page."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles

from preference_ui.app.board.page import board_page
from preference_ui.app.board.site import BoardSite
from preference_ui.app.hardened import guarded_app, mount_page
from preference_ui.app.site import STATIC, page_digest

OWN_STATIC = Path(__file__).with_name("static")
_DOOR = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>Board</title>'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<link rel="stylesheet" href="/static/login.css"><main><h1>Board</h1>'
    "<p>Open the link that <code>rlhf board</code> printed when it started: it carries the token.</p></main></html>"
)


def build_app(site: BoardSite, *, refresh_seconds: float = 5.0) -> FastAPI:
    """Assembles the application for one directory of runs."""
    app = guarded_app("board", site.address)

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/login")
    def login(request: Request, token: str = "") -> Response:
        if not site.lets_in(token):
            return HTMLResponse(_DOOR, status_code=200 if not token else 403)
        answer = RedirectResponse("/board/", status_code=303)  # without the token: it stays out of the history
        answer.set_cookie(site.cookie, token, httponly=True, secure=site.address.is_secure, samesite="lax", path="/")
        return answer

    @app.get("/")
    def home(request: Request) -> Response:
        return RedirectResponse("/login" if site.reader(request) is None else "/board/", status_code=303)

    @app.get("/favicon.ico")
    def icon() -> Response:
        return RedirectResponse("/static/icon.svg", status_code=301)

    app.mount("/static/board", StaticFiles(directory=OWN_STATIC), name="board-static")
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    version = page_digest()[:12]
    mount_page(
        app,
        board_page(site, refresh_seconds=refresh_seconds),
        "/board",
        who=site.reader,
        head=(
            '<title>Board</title><link rel="icon" href="/static/icon.svg" type="image/svg+xml">'
            f'<link rel="stylesheet" href="/static/page.css?v={version}">'
            f'<link rel="stylesheet" href="/static/board/board.css?v={version}">'
        ),
    )
    return app
