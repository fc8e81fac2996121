"""Every read and write of the ranking page: plain routes, authorised in the database, answered after the commit.

They bypass Gradio's event queue on purpose: it drops an event whose tab has gone before its turn came, and a vote must
never vanish silently. What the page sends is a hint; who may do what is decided by session and lease.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError

from preference_ui import queue
from preference_ui.app.limits import RateLimit
from preference_ui.app.payload import boot_json, questions_json, standing_json, task_json, text_json
from preference_ui.app.site import Site
from preference_ui.errors import (
    AuthError,
    DataError,
    FrozenAnswer,
    LateAnswer,
    LeaseError,
    OtherGroup,
    RlhfError,
    StoreError,
    TaskTaken,
    TooSoon,
    VoteConflict,
)
from preference_ui.events import MAX_LEAD_SECONDS, seconds_ahead
from preference_ui.i18n import DEFAULT_LOCALE, LOCALES
from preference_ui.people import Person, update_annotator
from preference_ui.projects import get_guideline, get_project
from preference_ui.votes import Vote

logger = logging.getLogger(__name__)

Body = dict[str, Any]
Handler = Callable[[Person, Body], Body]

WRITES_PER_SECOND, WRITE_BURST = 5.0, 60.0
ANSWERS_PER_PAGE = 100
# Whom the page was loaded for. The tabs of a browser share one session: another login in it must not turn what one
# person does in an open tab into the other's.
PERSON_HEADER = "x-rlhf-person"
# Where the page's reader is: "today" begins at that midnight. Handlers find it in the body.
ZONE_HEADER, ZONE = "x-rlhf-zone", "zone"


def _text(body: Body, name: str, limit: int = 200) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value or len(value) > limit:
        raise DataError(f"{name}: must be a text of 1 to {limit} characters")
    return value


def _refusal(error: RlhfError) -> JSONResponse:
    """The error as a code that the page can put into the reader's language, and the text for details."""
    known: list[tuple[type[RlhfError], str, int]] = [
        (VoteConflict, "conflict", 409),
        (TooSoon, "too_soon", 409),
        (FrozenAnswer, "frozen", 409),
        (LateAnswer, "late", 409),
        (TaskTaken, "taken", 409),
        (OtherGroup, "group", 409),
        (LeaseError, "lease", 409),
        (AuthError, "role", 403),
        (DataError, "data", 422),
    ]
    code, status = next(((c, s) for kind, c, s in known if isinstance(error, kind)), ("data", 422))
    return JSONResponse({"error": code, "detail": str(error)}, status_code=status)


class RankingApi:
    """The handlers, one per write; each gets a person who is logged in and the JSON body."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def _after(self, person: Person, body: Body, task: queue.Assignment | None, **more: Any) -> Body:
        """A task always comes with the questions of now: an open page outlives a change of settings."""
        project = get_project(self.site.store, self.site.project)
        return {
            "task": task_json(task, project),
            "questions": questions_json(project),
            **standing_json(self.site, person, body[ZONE]),
            # What the page must name to take it back: pressing the button twice takes back one.
            "last": queue.last_decided(self.site.store, self.site.project, person.id),
            **more,
        }

    def task(self, person: Person, body: Body) -> Body:
        """Claim, or get back what is held; with ``asked``, what the person asked the model for."""
        asked = body.get("asked") is True
        return self._after(person, body, queue.claim(self.site.store, self.site.project, person.id, reserved=asked))

    def submit(self, person: Person, body: Body) -> Body:
        """Store a vote; the answer is sent after the commit and brings the next task."""
        if not isinstance(body.get("vote"), dict):
            raise DataError("vote: must be an object")
        lease, revision, vote = _text(body, "lease"), _revision(body), Vote.from_dict(body["vote"])
        receipt = queue.submit(
            self.site.store, person.id, lease, vote, revision, claim_next=body.get("next", True) is True
        )
        saved = {
            "judgment": receipt.judgment_id,
            "revision": receipt.revision,
            "duplicate": receipt.duplicate,
            "counted": receipt.counted,
        }
        return self._after(person, body, receipt.next, saved=saved)

    def skip(self, person: Person, body: Body) -> Body:
        """Decline a task."""
        lease, reason = _text(body, "lease"), _text(body, "reason", 2000)
        return self._after(
            person, body, queue.skip(self.site.store, person.id, lease, reason, claim_next=True), saved={}
        )

    def undo(self, person: Person, body: Body) -> Body:
        """Take back the vote or skip that the page names and hold its task again."""
        return self._after(person, body, queue.withdraw(self.site.store, person.id, _text(body, "lease")))

    def recall(self, person: Person, body: Body) -> Body:
        """Show an own answer again, to change it."""
        return self._after(person, body, queue.recall(self.site.store, person.id, _text(body, "lease")))

    def draft(self, person: Person, body: Body) -> Body:
        """Keep an unfinished vote, or with null throw it away."""
        draft = body.get("draft", False)
        if draft is not None and not isinstance(draft, dict):
            raise DataError("draft: must be an object or null")
        kept = queue.save_draft(self.site.store, person.id, _text(body, "lease"), draft, _revision(body))
        return {"saved": kept}

    def renew(self, person: Person, body: Body) -> Body:
        """Hold the task for longer."""
        queue.renew(self.site.store, person.id, _text(body, "lease"))
        return {"saved": True}

    def settings(self, person: Person, body: Body) -> Body:
        """Change the language."""
        locale = _text(body, "locale")
        if locale not in LOCALES:
            raise DataError(f"locale: {locale!r} is not one of {', '.join(LOCALES)}")
        update_annotator(self.site.store, person.id, actor=person.id, locale=locale)
        return {"saved": True}

    def history(self, person: Person, body: Body) -> Body:
        """Own answers, newest first: a page of them after the ``skip`` newest ones, and whether there are more."""
        skip = body.get("skip", "0")
        if not isinstance(skip, str) or not re.fullmatch(r"[0-9]{1,9}", skip):
            raise DataError("skip: must be a whole number")
        found = queue.history(self.site.store, person.id, self.site.project, limit=ANSWERS_PER_PAGE + 1, skip=int(skip))
        return {
            "more": len(found) > ANSWERS_PER_PAGE,
            "answers": [
                {
                    "lease": e.lease_id,
                    "voted": e.voted.isoformat(timespec="seconds"),
                    "revision": e.revision,
                    "frozen": e.frozen,
                    "opening": e.opening,
                }
                for e in found[:ANSWERS_PER_PAGE]
            ],
        }

    def boot(self, person: Person, body: Body) -> Body:
        """Everything but the task."""
        project = get_project(self.site.store, self.site.project)
        return boot_json(self.site, person, project, _locale(person))

    def guideline(self, person: Person, body: Body) -> Body:
        """The guideline in force, rendered."""
        project = get_project(self.site.store, self.site.project)
        words = get_guideline(self.site.store, project.id, project.guideline_version)
        return {"version": project.guideline_version, "empty": not words.strip(), **text_json(words)}


def _revision(body: Body) -> int:
    revision = body.get("revision")
    if not isinstance(revision, int) or isinstance(revision, bool):
        raise DataError("revision: must be a whole number")
    return revision


def _locale(person: Person) -> str:
    return person.locale if person.locale in LOCALES else DEFAULT_LOCALE


_READS = ("boot", "history", "guideline")
_WRITES = ("task", "submit", "skip", "undo", "recall", "draft", "renew", "settings")


async def _body_of(request: Request) -> Body:
    if request.method == "GET":
        return dict(request.query_params)
    # A plain form of another site cannot send this content type without asking first.
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise DataError("the body must be application/json")
    try:
        body = json.loads(await request.body(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DataError("the body is not JSON") from error
    if not isinstance(body, dict):
        raise DataError("the body must be an object")
    return body


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _make_route(site: Site, handler: Handler, limit: RateLimit | None) -> Callable[..., Any]:
    def work(request: Request, body: Body) -> JSONResponse:
        person = site.visitor(request)
        if person is None:
            return JSONResponse({"error": "login"}, status_code=401)
        meant = request.headers.get(PERSON_HEADER, person.id)
        if meant != person.id:
            return JSONResponse({"error": "person", "detail": person.handle}, status_code=409)
        if limit is not None and not limit.allows(person.id):
            return JSONResponse({"error": "rate"}, status_code=429)
        return JSONResponse(handler(person, body | {ZONE: request.headers.get(ZONE_HEADER, "")[:64]}))

    async def route(request: Request) -> JSONResponse:
        try:
            body = await _body_of(request)
            return await run_in_threadpool(work, request, body)
        except (StoreError, SQLAlchemyError) as error:
            # Always as JSON: the page takes any other answer for a broken connection.
            logger.error("%s: %s", handler.__name__, error, exc_info=error)
            return JSONResponse({"error": "server"}, status_code=503)
        except RlhfError as error:
            return _refusal(error)

    return route


def api_routes(site: Site) -> APIRouter:
    """``/api/...`` for the page and ``/healthz`` for whoever watches the server."""
    router = APIRouter()
    api = RankingApi(site)
    limit = RateLimit(WRITES_PER_SECOND, WRITE_BURST)
    for name in _READS:
        router.add_api_route(f"/api/{name}", _make_route(site, getattr(api, name), None), methods=["GET"])
    for name in _WRITES:
        router.add_api_route(f"/api/{name}", _make_route(site, getattr(api, name), limit), methods=["POST"])

    @router.get("/healthz")
    def health() -> JSONResponse:
        try:
            with site.store.read() as session:
                ahead = seconds_ahead(session, site.store.clock())
        except SQLAlchemyError:
            return JSONResponse({"status": "store unreachable"}, status_code=503)
        if ahead > MAX_LEAD_SECONDS:
            # People can go on; whoever watches should set a clock, this machine's or the one that was ahead.
            return JSONResponse({"status": "ok", "clock": f"the store's last event is {ahead:.0f} seconds ahead"})
        return JSONResponse({"status": "ok"})

    return router
