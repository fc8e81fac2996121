"""Middleware in front of every route: headers, hosts, origins, sizes, and the parts of Gradio that stay shut."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from preference_ui.app.address import Address

MAX_BODY_BYTES = 2 * 1024 * 1024
# Files of tasks; the routes insist on an admin before they read one.
MAX_UPLOAD_BYTES = 32 * 1024 * 1024
UPLOADS = frozenset({"/api/data/preview", "/api/data/store"})
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}

# gr.HTML compiles its template in the browser, which needs unsafe-eval; its pages start from inline scripts.
GRADIO_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'self'; object-src 'none'"
)
OWN_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_OWN_PATHS = re.compile(r"^/(login|logout|password|healthz|api/|static/)")
# Gradio's uploads and files, the proxy, the API page, run history and monitoring: nothing here uses them.
_SHUT = re.compile(
    r"/(gradio_api/)?(upload|upload_progress|file=|file/|proxy=|stream/|deep_link|monitoring|component_server"
    r"|call/|run/|info|openapi|mcp|vibe|dev/|api(/|$)|docs$|redoc$|token$|app_id|login_check|user$|robots)"
)

HEADERS = {
    "x-content-type-options": "nosniff",
    # Not "no-referrer": with that, browsers send "Origin: null" with our own forms. Other sites still get nothing.
    "referrer-policy": "same-origin",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}


class _TooLarge(Exception):
    pass


def _most_bytes(scope: Scope) -> int:
    return MAX_UPLOAD_BYTES if scope["path"] in UPLOADS else MAX_BODY_BYTES


def _too_large(scope: Scope) -> JSONResponse:
    words = {"error": "too_large"}
    if scope["path"] in UPLOADS:
        size = MAX_UPLOAD_BYTES // (1024 * 1024)
        words["detail"] = f"the page takes files of {size} MiB at most; import larger ones with `rlhf prefs import`"
    return JSONResponse(words, status_code=413)


class Guard:
    """ASGI middleware; see the module. Refusals are JSON with an ``error`` code and write nothing."""

    def __init__(self, app: ASGIApp, address: Address) -> None:
        self.app = app
        self.address = address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            # No part of the page opens a websocket.
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, self._with_headers(scope, send))
            return
        try:
            await self.app(scope, self._limited(receive, _most_bytes(scope)), self._with_headers(scope, send))
        except _TooLarge:
            await _too_large(scope)(scope, receive, self._with_headers(scope, send))

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        path: str = scope["path"]
        if headers.get("host", "") not in self.address.hosts and path != "/healthz":
            return JSONResponse({"error": "host"}, status_code=421)
        if not path.startswith(("/api/", "/static/")) and _SHUT.search(path):
            return JSONResponse({"error": "not_found"}, status_code=404)
        if scope["method"] not in _SAFE_METHODS and not self._is_own_page(headers):
            return JSONResponse({"error": "origin"}, status_code=403)
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > _most_bytes(scope):
            return _too_large(scope)
        return None

    def _is_own_page(self, headers: Headers) -> bool:
        """Whether a write comes from our own page. Every current browser sends Origin with a POST."""
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return False
        return headers.get("origin", "") in self.address.origins

    def _limited(self, receive: Receive, most_bytes: int) -> Receive:
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most_bytes:
                raise _TooLarge
            return message

        return limited

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        path: str = scope["path"]
        own = bool(_OWN_PATHS.match(path))
        # Gradio answers a visitor without a session with JSON; a person needs the login form.
        wants_page = not own and scope["method"] == "GET" and "text/html" in Headers(scope=scope).get("accept", "")

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if message["status"] == 401 and wants_page:
                    message["status"] = 303
                    headers["location"] = "/login"
                for name, value in HEADERS.items():
                    headers[name] = value
                headers["content-security-policy"] = OWN_POLICY if own else GRADIO_POLICY
                if self.address.is_secure:
                    headers["strict-transport-security"] = "max-age=31536000"
                if path.startswith("/static/"):
                    # Checked against the server each time: a page must not run with half of its scripts renewed.
                    headers["cache-control"] = "no-cache"
                elif "cache-control" not in headers and "/assets/" not in path:
                    headers["cache-control"] = "no-store"
            await send(message)

        return send_with_headers
