"""Downloads for leads: the files of frozen versions, and the judgments of this moment.

A browser names a version by its number and a file by one of few names; no path comes from it. Gradio serves no file.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response, StreamingResponse

from preference_ui.app.site import Site
from preference_ui.auth import require_role
from preference_ui.commands import prefs_export
from preference_ui.datasets import VERSION_FILES, version_file
from preference_ui.errors import AuthError, DataError

JUDGMENTS = "/api/data/judgments.jsonl"
_BLOCK_BYTES = 256 * 1024
_TYPES = {".jsonl": "application/x-ndjson", ".json": "application/json"}
_PRIVATE = {"cache-control": "private, no-store"}


def version_address(number: int, name: str) -> str:
    """Where a file of a version is fetched."""
    return f"/api/data/versions/{number}/{name}"


def takeaway_routes(site: Site) -> APIRouter:
    """``/api/data/...`` for reviewers and admins; anybody else gets 403, or the login."""
    router = APIRouter()

    def guarded(request: Request, answer: Callable[[], Response]) -> Response:
        person = site.visitor(request)
        if person is None:
            return RedirectResponse("/login?expired", status_code=303)
        try:
            require_role(person, "reviewer")
            return answer()
        except AuthError:
            return JSONResponse({"error": "role"}, status_code=403)
        except DataError as error:
            return JSONResponse({"error": "not_found", "detail": str(error)}, status_code=404)

    @router.get("/api/data/versions/{number}/{name}")
    def version(request: Request, number: str, name: str) -> Response:
        def answer() -> Response:
            if not re.fullmatch("[0-9]{1,9}", number) or name not in VERSION_FILES:
                raise DataError("no such file")
            found = version_file(site.store, site.project, int(number), name)
            return _attached(found, f"{site.project}-v{int(number)}-{name}")

        return guarded(request, answer)

    @router.get(JUDGMENTS)
    def judgments(request: Request) -> Response:
        def answer() -> Response:
            return _attached(_judgments_of_now(site), f"{site.project}-judgments-{site.store.clock():%Y%m%d}.jsonl")

        return guarded(request, answer)

    return router


def _judgments_of_now(site: Site) -> BinaryIO:
    """The export, in an open file that has no name any more: nothing of it stays, whatever ends the download."""
    with tempfile.TemporaryDirectory(prefix="rlhf-export-") as folder:
        path = Path(folder) / "judgments.jsonl"
        prefs_export(site.store, site.project, path, file_format="judgments")
        return path.open("rb")


def _attached(found: Path | bytes | BinaryIO, filename: str) -> Response:
    kind = _TYPES[Path(filename).suffix]
    if isinstance(found, Path):
        return FileResponse(found, media_type=kind, filename=filename, headers=_PRIVATE)
    # FileResponse knows how a name that is not ASCII is written down.
    named = {"content-disposition": FileResponse("", filename=filename).headers["content-disposition"]} | _PRIVATE
    if isinstance(found, bytes):
        return Response(found, media_type=kind, headers=named)
    return StreamingResponse(_blocks(found), media_type=kind, headers=named)


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while block := file.read(_BLOCK_BYTES):
            yield block
