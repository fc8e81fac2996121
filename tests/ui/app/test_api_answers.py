"""What the ranking page's routes answer when something goes wrong: JSON that the page can put into words."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy.exc import ProgrammingError

from preference_ui import queue
from preference_ui.app.address import Address
from preference_ui.app.api import api_routes
from preference_ui.app.site import Site
from preference_ui.errors import StoreError
from tests.ui.app.ui_helpers import seed, token_for


@pytest.mark.parametrize("error", [StoreError("locked"), ProgrammingError("SELECT", {}, Exception("no such column"))])
def test_what_the_store_refuses_is_answered_in_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    store = seed(tmp_path / "p.sqlite", num_items=1)
    site = Site(store, "helpline", Address("http://127.0.0.1:1"))
    app = FastAPI()
    app.include_router(api_routes(site))

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(queue, "claim", refuse)
    client = TestClient(app, cookies={site.session_cookie: token_for(store, "ann")[1]})
    answer = client.post("/api/task", json={})
    assert (answer.status_code, answer.json()) == (503, {"error": "server"})
    store.close()
