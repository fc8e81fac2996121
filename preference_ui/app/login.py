"""Login, logout and the own password: pages without scripts, translated, with the session kept in the database."""

from __future__ import annotations

import asyncio
import html
import string
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from preference_ui import auth, queue
from preference_ui.app.site import LOCALE_COOKIE, STATIC, Site
from preference_ui.errors import AuthError, ConfigError, DataError, LockedOut
from preference_ui.i18n import HTML_LANG, LOCALES, translate
from preference_ui.people import MIN_PASSWORD_CHARACTERS

MAX_FORM_CHARACTERS = 4096
# Fewer than the failures that an address has free: a whole team that logs in at once waits and is not locked out.
LOGINS_AT_ONCE = 8


def login_page(site: Site, locale: str, *, message: str = "", handle: str = "", status: int = 200) -> HTMLResponse:
    """The form, with a message above it when something went wrong."""
    template = string.Template((STATIC / "login.html").read_text(encoding="utf-8"))
    alert = f'<p class="message" role="alert">{html.escape(message)}</p>' if message else ""
    languages = " ".join(
        f'<a href="/login?lang={code}" lang="{HTML_LANG[code]}"'
        f"{' aria-current=true' if code == locale else ''}>{name}</a>"
        for code, name in LOCALES.items()
    )
    page = template.substitute(
        lang=HTML_LANG[locale],
        alert=alert,
        handle=html.escape(handle, quote=True),
        project=html.escape(site.project),
        languages=languages,
        **{key: html.escape(translate(locale, f"login.{key}")) for key in ("title", "name", "password", "button")},
        language=html.escape(translate(locale, "login.language")),
        app=html.escape(translate(locale, "app.title")),
    )
    return HTMLResponse(page, status_code=status)


def password_page(site: Site, locale: str, *, message: str = "", good: bool = False, status: int = 200) -> HTMLResponse:
    """The form with which people change their own password."""
    template = string.Template((STATIC / "password.html").read_text(encoding="utf-8"))
    kind, role = ("message good", "status") if good else ("message", "alert")
    said = f'<p class="{kind}" role="{role}">{html.escape(message)}</p>' if message else ""
    names = ("title", "current", "new", "again", "button", "back")
    page = template.substitute(
        lang=HTML_LANG[locale],
        said=said,
        app=html.escape(translate(locale, "app.title")),
        minimum=MIN_PASSWORD_CHARACTERS,
        **{name: html.escape(translate(locale, f"password.{name}", count=MIN_PASSWORD_CHARACTERS)) for name in names},
    )
    return HTMLResponse(page, status_code=status)


def _change_password(site: Site, locale: str, token: str, fields: dict[str, list[str]]) -> Response:
    current, new, again = (fields.get(name, [""])[0][:1000] for name in ("current", "new", "again"))

    def say(key: str, status: int, **values: object) -> Response:
        return password_page(site, locale, message=translate(locale, f"password.{key}", **values), status=status)

    if new != again:
        return say("differ", 422)
    try:
        auth.change_password(site.store, token, current, new)
    except LockedOut as error:
        return say("locked", 429, seconds=max(1, round(error.retry_after_seconds)))
    except AuthError:
        return say("wrong", 403)
    except ConfigError:
        return say("short", 422, count=MIN_PASSWORD_CHARACTERS)
    return password_page(site, locale, message=translate(locale, "password.done"), good=True)


async def _form(request: Request) -> dict[str, list[str]]:
    body = await request.body()
    try:
        return parse_qs(body.decode("utf-8"), max_num_fields=8) if len(body) <= MAX_FORM_CHARACTERS else {}
    except ValueError:
        return {}


def _set_session(site: Site, response: Response, login: auth.Login) -> None:
    response.set_cookie(
        site.session_cookie,
        login.token,
        expires=login.expires,
        path="/",
        httponly=True,
        secure=site.address.is_secure,
        samesite="lax",
    )


def _attempt(site: Site, locale: str, handle: str, password: str, address: str) -> Response:
    try:
        login = auth.login(site.store, handle, password, address)
    except LockedOut as error:
        text = translate(locale, "login.locked", seconds=max(1, round(error.retry_after_seconds)))
        return login_page(site, locale, message=text, handle=handle, status=429)
    except (AuthError, DataError):
        return login_page(site, locale, message=translate(locale, "login.wrong"), handle=handle, status=401)
    response = RedirectResponse("/", status_code=303)
    _set_session(site, response, login)
    return response


def login_routes(site: Site) -> APIRouter:
    """``/login``, ``/logout`` and ``/password``."""
    router = APIRouter()
    turns = asyncio.Semaphore(LOGINS_AT_ONCE)

    @router.get("/login")
    def show(request: Request, lang: str = "") -> Response:
        if site.visitor(request) is not None:
            return RedirectResponse("/", status_code=303)
        locale = lang if lang in LOCALES else site.locale(request)
        message = translate(locale, "login.expired") if "expired" in request.query_params else ""
        response = login_page(site, locale, message=message)
        if lang in LOCALES:
            response.set_cookie(
                LOCALE_COOKIE, lang, max_age=365 * 86_400, httponly=True, secure=site.address.is_secure, samesite="lax"
            )
        return response

    @router.post("/login")
    async def enter(request: Request) -> Response:
        locale = site.locale(request)
        fields = await _form(request)
        handle, password = (fields.get(name, [""])[0] for name in ("handle", "password"))
        address = request.client.host if request.client else ""
        # The hash takes a fifth of a second on purpose; on the event loop, or in all threads, it would stall everybody.
        async with turns:
            return await run_in_threadpool(_attempt, site, locale, handle[:200], password[:1000], address)

    @router.get("/password")
    def ask(request: Request) -> Response:
        person = site.visitor(request)
        if person is None:
            return RedirectResponse("/login", status_code=303)
        return password_page(site, site.locale(request, person))

    @router.post("/password")
    async def renew(request: Request) -> Response:
        fields = await _form(request)
        person, token = await run_in_threadpool(site.visitor, request), site.token(request)
        if person is None or token is None:
            return RedirectResponse("/login?expired", status_code=303)
        return await run_in_threadpool(_change_password, site, site.locale(request, person), token, fields)

    @router.post("/logout")
    def leave(request: Request) -> Response:
        token = site.token(request)
        person = site.visitor(request)
        if token:
            auth.logout(site.store, token)
        if person is not None:
            # Others need not wait for the hold to run out; the draft stays for a return.
            queue.release_held(site.store, person.id)
        response = RedirectResponse("/login", status_code=303)
        response.delete_cookie(
            site.session_cookie, path="/", httponly=True, secure=site.address.is_secure, samesite="lax"
        )
        return response

    return router
