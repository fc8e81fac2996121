"""Server, browser and pages shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from preference_ui.db import Store
from tests.ui.app.ui_helpers import CHROMIUM, Server, Visit, free_port, seed, token_for

FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
_names = count(1)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Store]]:
    """One server for all tests; each test brings its own account, so they do not meet."""
    path = tmp_path_factory.mktemp("site") / "preferences.sqlite"
    store = seed(path)
    server = Server(path, free_port())
    server.start()
    yield server, store
    server.kill()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, driven by Playwright."""
    if not CHROMIUM.exists():
        pytest.fail(f"{CHROMIUM} is missing: run `apt-get install -y chromium` (no download by Playwright is needed)")
    with sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield instance
        instance.close()


@pytest.fixture
def visit(site: tuple[Server, Store], browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Make a visit of a fresh account; options go to the browser context."""
    contexts = []

    def make(role: str = "annotator", where: tuple[Server, Store] = site, handle: str = "", **options: Any) -> Visit:
        server, store = where
        annotator_id, token = token_for(store, handle or f"person{next(_names)}", role)
        context = browser.new_context(**({"viewport": {"width": 1360, "height": 900}} | options))
        context.add_cookies([{"name": server.cookie, "value": token, "url": server.url, "httpOnly": True}])
        contexts.append(context)
        return Visit(context, server, annotator_id, token)

    yield make
    for context in contexts:
        context.close()
