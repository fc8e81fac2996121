"""Groups as an admin gives them under People, and as an annotator and the overview notice them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import expect

from preference_ui.groups import groups_of
from preference_ui.projects import ItemSpec, ResponseSpec, add_items, get_project
from rlhf.data.schema import Message
from tests.ui.app.ui_helpers import Server, Visit, free_port, seed, violations


def test_an_admin_gives_groups_and_people_get_their_tasks(tmp_path: Path, visit: Callable[..., Visit]) -> None:
    store = seed(tmp_path / "p.sqlite", num_items=0)
    project = get_project(store, "helpline")
    add_items(store, project.id, [
        ItemSpec((Message("user", words),), (ResponseSpec("a"), ResponseSpec("b")), group=group)
        for words, group in (("Hvem er du?", "da"), ("你是谁？", "<b>zh</b>"))
    ])  # fmt: skip
    server = Server(tmp_path / "p.sqlite", free_port())
    server.start()
    try:
        nova = visit(where=(server, store), handle="nova")
        nova.page.goto(f"{server.url}/en/")
        nova.page.wait_for_selector("text=Nothing left to rank")
        expect(nova.page.locator(".progress-line")).to_contain_text("project 0 of 0")

        lead = visit(where=(server, store), role="admin", handle="boss")
        tab = lead.page
        tab.goto(f"{server.url}/lead/en/")
        tab.wait_for_selector(".badge >> text=Nobody can take: <b>zh</b>, da.")
        tab.get_by_role("tab", name="People", exact=True).click()
        tab.wait_for_selector("table.people >> text=nova")
        tab.wait_for_selector("text=Groups of this project's tasks: <b>zh</b>, da")
        assert tab.locator("table.people th", has_text="Groups").count() == 0, "nobody has one yet"
        words, save = tab.get_by_label("Groups, with commas"), tab.get_by_role("button", name="Save the groups")
        save.click()
        tab.wait_for_selector("text=Choose a person first")
        tab.get_by_label("Person", exact=True).click()
        tab.get_by_role("option", name="nova", exact=True).click()
        expect(tab.get_by_label("Active")).to_be_checked(timeout=30_000)
        tab.wait_for_timeout(500)
        words.fill(" da, medical")
        save.click()
        tab.wait_for_selector("text=The groups of nova are saved.")
        tab.wait_for_selector("text=No task of this project has these groups yet: medical")
        expect(words).to_have_value("da, medical", timeout=30_000)
        expect(tab.locator("table.people tr:has-text('nova') td").nth(5)).to_have_text("da, medical")
        words.fill("x" * 65)
        save.click()
        tab.wait_for_selector("text=A group is a short word of at most 64 characters.")
        with store.read() as session:
            assert groups_of(session, project.id, nova.annotator_id) == ("da", "medical")
        assert violations(tab) == []

        nova.page.reload()
        nova.page.wait_for_selector(".ranking")
        expect(nova.page.locator(".prompt")).to_contain_text("Hvem er du?")
        expect(nova.page.locator(".progress-line")).to_contain_text("project 0 of 50")
        tab.get_by_role("tab", name="Items", exact=True).click()
        expect(tab.locator(".item-list")).to_contain_text("Hvem er du? · group da · Open", timeout=30_000)
        assert lead.errors == nova.errors == []
    finally:
        server.kill()
        store.close()
