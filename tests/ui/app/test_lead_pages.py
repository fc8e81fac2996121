"""The lead looks at the pictures, decides a disagreement, and lets somebody in; others cannot."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from preference_ui import auth, queue
from preference_ui.app.address import Address
from preference_ui.app.dashboard import Dashboard
from preference_ui.app.site import Site
from preference_ui.db import Store
from preference_ui.people import ensure_annotator, find_annotator
from preference_ui.projects import get_guideline, get_project
from preference_ui.reviews import inbox
from preference_ui.settings import Axis
from preference_ui.votes import Vote
from tests.ui.app.ui_helpers import PASSWORD, SETTINGS, Server, Visit, free_port, seed

HANDLE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def lead_site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Server, Store]:
    path = tmp_path_factory.mktemp("lead") / "p.sqlite"
    store = seed(path, num_items=3)
    for name, best in (("optimist", 0), (HANDLE, 3)):
        who = ensure_annotator(store, name).id
        for _ in range(3):
            task = queue.claim(store, "helpline", who)
            if task is None:
                raise AssertionError("no task")
            order = sorted(range(4), key=lambda slot: len(task.responses[slot]) * (1 if best else -1))
            vote = Vote(tiers=[[slot] for slot in order], active_ms=9000, rationale=f"{HANDLE} ${{1}}")
            queue.submit(store, who, task.lease_id, vote, task.revision)
            queue.progress(store, "helpline", who)
    return Server(path, free_port()), store


def test_pictures_escape_names_and_are_computed_once_per_change(lead_site: tuple[Server, Store]) -> None:
    server, store = lead_site
    dashboard = Dashboard(Site(store, "helpline", Address(server.url)))
    for locale in ("en", "da", "zh"):
        page = dashboard.render(locale)
        assert "<img" not in page
        assert "&lt;img" in page
        assert page.count("<svg") >= 5
    assert dashboard.figures()[0] is dashboard.figures()[0]


def test_lead_decides_and_admits(lead_site: tuple[Server, Store], visit: Callable[..., Visit]) -> None:
    server, store = lead_site
    project = get_project(store, "helpline").id
    server.start()
    try:
        lead = visit(where=lead_site, role="admin", handle="boss")
        page = lead.page
        page.goto(f"{server.url}/lead/en/")
        page.wait_for_selector(".tile")
        assert page.locator("svg.chart").count() >= 5
        before = len(inbox(store, "helpline"))
        assert before == 3
        page.get_by_role("tab", name="Disagreements").click()
        page.wait_for_selector(".decision .votes li")
        page.get_by_label("Reason").fill("nobody said what counts")
        page.get_by_label("New guideline").fill("# Rules\n\nShort is good.")
        page.get_by_role("button", name="Decide").click()
        page.wait_for_selector("text=Version 2 of the guidelines is in force")
        assert get_project(store, project).guideline_version == 2
        assert get_guideline(store, project) == "# Rules\n\nShort is good."
        assert len(inbox(store, "helpline")) == before - 1
        page.get_by_role("tab", name="People").click()
        page.get_by_label("Name").fill("newcomer")
        page.get_by_label("Password").first.fill(PASSWORD)
        page.get_by_role("button", name="Add").click()
        page.wait_for_selector("text=newcomer can log in now")
        assert find_annotator(store, "newcomer") is not None

        # What is refused is said, and nothing on the page is touched: no field is emptied or marked as broken.
        page.wait_for_selector("table.people >> text=newcomer")  # the message comes before the page's new contents
        page.get_by_label("Name").fill("newcomer")
        page.get_by_label("Password").first.fill(PASSWORD)
        page.get_by_role("button", name="Add").click()
        page.wait_for_selector("text=there is an account 'newcomer' already")
        expect(page.get_by_label("Name")).to_have_value("newcomer")
        assert page.locator(".tabitem .error").count() == 0
        assert "Traceback" not in server.log()
        assert (
            page.evaluate("document.querySelector('.gradio-container img[onerror], .gradio-container img[src=x]')")
            is None
        )

        # The newcomer forgot the password: the lead gives another, which ends every session.
        forgotten = auth.login(store, "newcomer", PASSWORD).token
        page.get_by_role("button", name="Change", exact=True).click()
        page.wait_for_selector("text=Choose a person first")
        page.get_by_label("Person").click()
        page.get_by_role("option", name="newcomer").click()
        expect(page.get_by_label("Person")).to_have_value("newcomer", timeout=30_000)
        page.get_by_label("New password").fill("a third long password")
        # Until the boxes show the person chosen, it is refused.
        deadline = time.monotonic() + 60
        while not page.get_by_text("Changed.", exact=True).count() and time.monotonic() < deadline:
            page.get_by_role("button", name="Change", exact=True).click()
            page.wait_for_timeout(1000)
        assert auth.session_person(store, forgotten) is None
        assert auth.login(store, "newcomer", "a third long password").person.role == "annotator"

        page.get_by_role("tab", name="Settings").click()
        expect(page.get_by_label("Votes per task")).to_have_value("50", timeout=30_000)
        page.get_by_label("Votes per task").fill("3")
        page.get_by_label("Ratings per response").fill("helpful 1 7\nclear")
        page.get_by_label("Ties are allowed").uncheck()
        page.get_by_label("Share of gold tasks").fill("0.9")
        page.get_by_label("Share of repeated tasks").fill("0.9")
        page.get_by_role("button", name="Save the settings").click()
        page.wait_for_selector("text=at most 1 together with the share of repeated tasks")
        page.get_by_label("Share of repeated tasks").fill("0.05")
        page.get_by_role("button", name="Save the settings").click()
        page.wait_for_selector("text=The settings are saved")
        changed = get_project(store, project).settings
        assert (changed.overlap, changed.gold_rate, changed.repeat_rate, changed.allow_ties) == (3, 0.9, 0.05, False)
        assert changed.axes == (Axis("helpful"), Axis("clear"))
        assert (
            dataclasses.replace(
                changed, overlap=50, gold_rate=0.0, repeat_rate=0.0, allow_ties=True, axes=SETTINGS.axes
            )
            == SETTINGS
        )
        foreign = [u for u in lead.requests if not u.startswith((server.url, "data:", "blob:"))]
        assert foreign == []
        assert lead.errors == []

        # A reviewer sees the page, but the server refuses what only an admin may do.
        reviewer = visit(where=lead_site, role="reviewer", handle="checker")
        page = reviewer.page
        page.goto(f"{server.url}/lead/en/")
        page.wait_for_selector(".tile")
        page.get_by_role("tab", name="People").click()
        page.get_by_label("Name").fill("smuggled")
        page.get_by_label("Password").first.fill(PASSWORD)
        page.get_by_role("button", name="Add").click()
        page.wait_for_selector("text=Your role does not allow this")
        assert find_annotator(store, "smuggled") is None
        page.reload()
        page.wait_for_selector(".tile")
        page.get_by_role("tab", name="Settings").click()
        expect(page.get_by_label("Votes per task")).to_have_value("3", timeout=30_000)
        page.get_by_label("Votes per task").fill("1")
        page.get_by_role("button", name="Save the settings").click()
        page.wait_for_selector("text=Your role does not allow this")
        assert get_project(store, project).settings == changed
    finally:
        server.kill()


def test_overview_of_an_empty_project(tmp_path: Path) -> None:
    store = seed(tmp_path / "p.sqlite", num_items=1)
    page = Dashboard(Site(store, "helpline", Address("http://127.0.0.1:1"))).render("en")
    assert "Too few answers" in page
