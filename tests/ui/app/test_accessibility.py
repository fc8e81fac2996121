"""axe-core on every page and dialog, by day and by night: it finds nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from preference_ui.db import Store
from tests.ui.app.ui_helpers import Server, Visit, violations

Site = tuple[Server, Store]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_ranking_page_and_its_dialogs(site: Site, visit: Callable[..., Visit], scheme: str) -> None:
    someone = visit(color_scheme=scheme)
    page = someone.page
    someone.open()
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    page.click(".side summary")
    page.click('.card[data-slot="0"] .edit-open')
    page.keyboard.press("Escape")
    page.click(".account summary")
    assert violations(page) == []
    page.click(".account summary")
    page.click(".submit")
    page.wait_for_selector("dialog[open]")
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.click(".skip")
    page.wait_for_selector("dialog[open] .choices")
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.click(".button.help")
    page.wait_for_selector("dialog[open] .keys")
    assert violations(page) == []
    page.keyboard.press("Escape")
    for tab in ("Guidelines", "My answers"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_selector(f".reading-page h2:has-text('{tab}')")
        assert violations(page) == [], tab
    page.goto(f"{someone.server.url}/password")
    assert violations(page) == []
    someone.context.clear_cookies()
    page.goto(f"{someone.server.url}/login")
    assert violations(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_leads_pages(site: Site, visit: Callable[..., Visit], scheme: str) -> None:
    lead = visit(role="admin", color_scheme=scheme)
    page = lead.page
    page.goto(f"{lead.server.url}/lead/en/")
    page.wait_for_selector(".tile")
    assert violations(page) == []
    shown = {"Disagreements": "Decision", "Items": "Items found", "Data": "Bring tasks in", "People": "Add somebody",
             "Guidelines": "As annotators see it", "Settings": "Save the settings"}  # fmt: skip
    for tab, words in shown.items():
        page.get_by_role("tab", name=tab).click()
        page.get_by_text(words).first.wait_for()
        assert violations(page) == [], tab
    assert lead.errors == []
