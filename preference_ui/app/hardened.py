"""What every web server of ours is built from: a guarded application, and Gradio pages with all that is unused shut."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

# Before gradio is imported: it reads the switch then.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from fastapi import FastAPI, Request
from starlette.middleware.cors import CORSMiddleware

from preference_ui.app.address import Address
from preference_ui.app.guard import Guard
from preference_ui.app.pages import theme


def guarded_app(title: str, address: Address) -> FastAPI:
    """An application without routes, behind the guard."""
    app = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None)
    # With a CORS middleware of the parent Gradio leaves its own out, which would reflect any origin.
    app.add_middleware(CORSMiddleware, allow_origins=[])
    app.add_middleware(Guard, address=address)
    return app


IDLE_SECONDS = 0.03
"""How often a page without events looks for one. Gradio does a thousand times a second for each page that is mounted,
which keeps a tenth of a core busy while nobody is there. Votes do not go this way."""
Who = Callable[[Request], str | Awaitable[str | None] | None]


def mount_page(app: FastAPI, page: gr.Blocks, path: str, *, who: Who, head: str) -> None:
    """Mounts a Gradio page that serves no files and shows no errors.

    Args:
        who: the visitor's id, None for one who may not see the page; asked on the event loop, so it waits for nothing.
        head: HTML of the page's head.
    """
    gr.mount_gradio_app(
        app,
        page,
        path=path,
        auth_dependency=who,
        allowed_paths=None,
        blocked_paths=["/"],
        show_error=False,
        max_file_size="1kb",
        ssr_mode=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        mcp_server=False,
        pwa=False,
        theme=theme(),
        head=head,
    )
    page._queue.sleep_when_free = IDLE_SECONDS
