"""Files of tasks that an admin brings in: looked at first, then sent once more to be stored.

The page keeps the file and the server keeps nothing in between: what is stored must have the digest of what was looked
at. Each time the file lies in a temporary folder for as long as it is read. Gradio's own uploads stay shut.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import ClientDisconnect

from preference_ui.app.api import PERSON_HEADER
from preference_ui.app.site import Site
from preference_ui.auth import require_role
from preference_ui.errors import AuthError, DataError, RlhfError, StoreError
from preference_ui.importing import import_file
from preference_ui.people import Person
from preference_ui.records import Candidate
from preference_ui.render import direction, plain_html
from preference_ui.survey import survey_file

logger = logging.getLogger(__name__)

KINDS = (".jsonl", ".ndjson", ".json", ".csv")
MAX_NAME_CHARACTERS = 120
FIRST_TASKS, MAX_LINES = 3, 10
MAX_SHOWN_CHARACTERS, MAX_SHOWN_TURNS = 2000, 10

Work = Callable[[Person, Path, str, str], Any]


class Uploads:
    """The handlers; each gets an admin, the file, its name and its digest, in a thread."""

    def __init__(self, site: Site) -> None:
        self.site = site
        # Items stored so far, and how many there are, by the admin whose import is running.
        self.running: dict[str, tuple[int, int]] = {}

    def preview(self, person: Person, path: Path, name: str, digest: str) -> dict[str, Any]:
        """What storing it would do."""
        found = survey_file(self.site.store, self.site.project, path, shown=name)
        return {
            "sha256": digest,
            "records": found.num_records,
            "tasks": len(found.tasks),
            "gold": found.num_gold,
            "rankings": found.num_rankings,
            "first": [_task(task) for task in found.tasks[:FIRST_TASKS]],
            "problems": _some(found.problems),
            "left_out": _some(found.left_out),
        }

    def store(self, person: Person, path: Path, name: str, digest: str) -> dict[str, Any]:
        """Import it as ``rlhf prefs import`` does."""

        def note(done: int, total: int) -> None:
            self.running[person.id] = done, total

        try:
            report = import_file(self.site.store, self.site.project, path, actor=person.id, shown=name, progress=note)
        finally:
            self.running.pop(person.id, None)
        return {
            "new": report.num_new,
            "known": report.num_items - report.num_new,
            "rankings": report.num_rankings,
            "left_out": _some(report.left_out),
        }


def _some(lines: list[str]) -> dict[str, Any]:
    """The first lines, and how many more there are."""
    return {"lines": lines[:MAX_LINES], "more": max(0, len(lines) - MAX_LINES)}


def _task(task: Candidate) -> dict[str, Any]:
    return {
        "prompt": [{"role": m.role, **_shown(m.content)} for m in task.spec.prompt[-MAX_SHOWN_TURNS:]],
        "responses": [_shown(response.text) for response in task.spec.responses],
    }


def _shown(text: str) -> dict[str, str]:
    start = text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 2] + " …"
    return {"plain": plain_html(start), "dir": direction(start)}


def _plain_name(given: str) -> str:
    """A file's name as messages tell it: without folders and without characters that are no letters.

    Raises:
        DataError: the page takes no such kind of file.
    """
    name = "".join(c for c in given.replace("\\", "/").rpartition("/")[2] if c.isprintable())
    stem, suffix = Path(name).stem, Path(name).suffix.lower()
    if suffix not in KINDS:
        raise DataError(
            f"{name or 'the file'}: unknown kind of file; use {', '.join(KINDS)} here; `rlhf prefs import` also "
            "reads .parquet"
        )
    return stem[: MAX_NAME_CHARACTERS - len(suffix)] + suffix


def _admin(site: Site, request: Request) -> Person | JSONResponse:
    person = site.visitor(request)
    if person is None:
        return JSONResponse({"error": "login"}, status_code=401)
    if request.headers.get(PERSON_HEADER, person.id) != person.id:
        return JSONResponse({"error": "person", "detail": person.handle}, status_code=409)
    try:
        return require_role(person, "admin")
    except AuthError:
        return JSONResponse({"error": "role"}, status_code=403)


async def _received(request: Request, path: Path) -> str:
    """Writes the body to a file and returns its digest; ``Guard`` ends a body that is too large."""
    digest = hashlib.sha256()
    with path.open("xb") as file:
        async for chunk in request.stream():
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def upload_routes(site: Site) -> APIRouter:
    """``/api/data/preview``, ``store`` and ``progress``, for admins only."""
    router = APIRouter()
    uploads = Uploads(site)

    def route(work: Work, *, same_as_before: bool) -> Callable[..., Any]:
        # Two large files at once would take the processor from those who vote.
        turn = asyncio.Lock()

        async def answer(request: Request) -> Response:
            person = await run_in_threadpool(_admin, site, request)
            if isinstance(person, JSONResponse):
                return person
            try:
                name = _plain_name(request.query_params.get("name", ""))
                with tempfile.TemporaryDirectory(prefix="rlhf-upload-") as folder:
                    path = Path(folder) / f"tasks{Path(name).suffix}"
                    digest = await _received(request, path)
                    if same_as_before and digest != request.query_params.get("sha256"):
                        return JSONResponse({"error": "changed"}, status_code=409)
                    async with turn:
                        return JSONResponse(await run_in_threadpool(work, person, path, name, digest))
            except ClientDisconnect:
                return Response(status_code=400)
            except (StoreError, SQLAlchemyError) as error:
                logger.error("upload: %s", error, exc_info=error)
                return JSONResponse({"error": "server"}, status_code=503)
            except RlhfError as error:
                return JSONResponse({"error": "data", "detail": str(error)}, status_code=422)

        return answer

    router.add_api_route("/api/data/preview", route(uploads.preview, same_as_before=False), methods=["POST"])
    router.add_api_route("/api/data/store", route(uploads.store, same_as_before=True), methods=["POST"])

    @router.get("/api/data/progress")
    def progress(request: Request) -> JSONResponse:
        person = _admin(site, request)
        if isinstance(person, JSONResponse):
            return person
        done, total = uploads.running.get(person.id, (0, 0))
        return JSONResponse({"done": done, "total": total})

    return router
