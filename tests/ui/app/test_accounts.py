"""Accounts over HTTP: the own password, logging out in mid-task, and votes that come too soon."""

from __future__ import annotations

import dataclasses
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

from preference_ui import auth, queue
from preference_ui.db import Store
from preference_ui.errors import AuthError
from preference_ui.models import Lease
from preference_ui.people import create_annotator
from preference_ui.projects import get_project, update_settings
from tests.ui.app.ui_helpers import PASSWORD, Server, token_for

Site = tuple[Server, Store]
NEW = "another long password"
_names = count(1)


def change(server: Server, token: str, current: str, new: str, again: str | None = None) -> int:
    with server.client(token) as page:
        form = {"current": current, "new": new, "again": new if again is None else again}
        return page.post("/password", data=form).status_code


def test_the_own_password_is_changed_by_its_owner_only(site: Site) -> None:
    server, store = site
    handle = f"owner{next(_names)}"
    _, token = token_for(store, handle)
    elsewhere = auth.login(store, handle, PASSWORD).token
    with server.client(token) as page, server.client() as nobody:
        assert 'autocomplete="new-password"' in page.get("/password").text
        assert "unsafe" not in page.get("/password").headers["content-security-policy"]
        assert nobody.get("/password").headers["location"] == "/login"
        assert nobody.post("/password", data={"current": PASSWORD}).headers["location"].startswith("/login")
    assert change(server, token, "wrong", NEW) == 403
    assert change(server, token, PASSWORD, "short") == 422
    assert change(server, token, PASSWORD, NEW, again="not the same") == 422
    with server.client(token, origin="https://evil.test") as forger:
        assert forger.post("/password", data={"current": PASSWORD, "new": NEW, "again": NEW}).status_code == 403
    assert auth.session_person(store, elsewhere) is not None
    assert change(server, token, PASSWORD, NEW) == 200
    assert auth.session_person(store, token) is not None
    assert auth.session_person(store, elsewhere) is None, "other browsers are logged out"
    with pytest.raises(AuthError):
        auth.login(store, handle, PASSWORD)
    assert auth.login(store, handle, NEW).person.handle == handle


def test_an_open_browser_is_no_place_to_guess(site: Site) -> None:
    server, store = site
    _, token = token_for(store, f"guessed{next(_names)}")
    codes = [change(server, token, f"guess {i}", NEW) for i in range(7)]
    assert codes == [403] * 5 + [429] * 2
    assert change(server, token, PASSWORD, NEW) == 429


def test_a_whole_team_may_log_in_at_once(site: Site) -> None:
    """Thirty people press the button in the same moment, behind one address."""
    server, store = site
    handles = [create_annotator(store, f"team{number}", password=PASSWORD).handle for number in range(30)]

    def enter(handle: str) -> str:
        with server.client() as client:
            return client.post("/login", data={"handle": handle, "password": PASSWORD}).headers.get("location", "")

    with ThreadPoolExecutor(30) as team:
        assert list(team.map(enter, handles)) == ["/"] * 30


def test_logging_out_gives_the_task_back_and_keeps_the_draft(site: Site) -> None:
    server, store = site
    handle = f"leaver{next(_names)}"
    who, token = token_for(store, handle)
    with server.client(token) as page:
        lease = page.post("/api/task", json={}).json()["task"]["lease"]
        draft = {"tiers": [[3], [2], [1], [0]]}
        assert page.post("/api/draft", json={"lease": lease, "revision": 1, "draft": draft}).status_code == 200
        assert page.post("/logout").status_code == 303
    with store.read() as session:
        assert session.get_one(Lease, lease).state == "released"
    back = queue.claim(store, "helpline", who)
    assert back is not None
    assert (back.lease_id, back.draft) == (lease, draft)


def test_a_vote_too_soon_has_a_code_of_its_own(site: Site) -> None:
    server, store = site
    project = get_project(store, "helpline")
    _, token = token_for(store, f"hasty{next(_names)}")
    slow = dataclasses.replace(project.settings, min_seconds=600.0)
    with server.client(token) as page:
        task = page.post("/api/task", json={}).json()["task"]
        body = {"lease": task["lease"], "revision": 1, "vote": {"tiers": [[i] for i in range(len(task["responses"]))]}}
        update_settings(store, project.id, slow, actor="test")
        try:
            reply = page.post("/api/submit", json=body)
        finally:
            update_settings(store, project.id, project.settings, actor="test")
        assert (reply.status_code, reply.json()["error"]) == (409, "too_soon")
        assert re.search(r"at least 600 seconds", reply.json()["detail"])
        assert page.post("/api/submit", json=body).status_code == 200
