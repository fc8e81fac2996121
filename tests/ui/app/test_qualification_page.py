"""A newcomer's first tasks, as the newcomer and the lead see them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import expect

from preference_ui import queue
from preference_ui.people import find_annotator
from preference_ui.projects import ItemSpec, ResponseSpec, add_items, get_project
from preference_ui.votes import Vote
from rlhf.data.schema import Message
from tests.ui.app.ui_helpers import SETTINGS, Server, Visit, free_port, seed

ROUND = 2


def test_a_newcomers_round_ends_under_review_and_a_lead_lets_pass(tmp_path: Path, visit: Callable[..., Visit]) -> None:
    store = seed(tmp_path / "p.sqlite", settings=replace(SETTINGS, qualify_items=ROUND), num_items=3)
    gold = [
        ItemSpec((Message("user", f"Say {n}"),), (ResponseSpec(f"{n}"), ResponseSpec("no")), gold_tiers=((0,), (1,)))
        for n in range(ROUND)
    ]
    add_items(store, get_project(store, "helpline").id, gold)
    server = Server(tmp_path / "p.sqlite", free_port())
    server.start()
    try:
        newcomer = visit(where=(server, store), handle="nova").open()
        page = newcomer.page
        line = page.locator(".progress-line")
        expect(line).to_have_text(f"Trial tasks: 0 of {ROUND}")
        # The first is answered in the page, wrongly; nothing there tells.
        lease = newcomer.lease()
        slots = page.locator(".card-body").all_inner_texts()
        worst = next(slot for slot, words in enumerate(slots) if words.strip() == "no")
        if newcomer.tiers() != [[worst], [1 - worst]]:
            page.locator(f".handle[data-slot='{worst}']").focus()
            page.keyboard.press("ArrowUp")
            newcomer.wait_tiers([[worst], [1 - worst]])
        page.keyboard.press("Control+Enter")
        page.wait_for_timeout(300)
        if page.get_by_role("button", name="Yes, submit this order").count():
            page.get_by_role("button", name="Yes, submit this order").click()
        newcomer.wait_new_task(lease)
        expect(line).to_have_text(f"Trial tasks: 1 of {ROUND}")
        who = find_annotator(store, "nova")
        if who is None:
            raise AssertionError("no account")
        task = queue.claim(store, "helpline", who.id)
        if task is None:
            raise AssertionError("no task")
        wrong = sorted(range(2), key=lambda slot: task.responses[slot] != "no")
        queue.submit(store, who.id, task.lease_id, Vote(tiers=[[slot] for slot in wrong]))
        page.reload()
        page.wait_for_selector("text=Your trial tasks are under review")
        expect(line).to_have_text(f"Trial tasks: {ROUND} of {ROUND}")
        assert page.get_by_text("Nothing left to rank").count() == 0

        lead = visit(where=(server, store), role="admin", handle="boss")
        tab = lead.page
        tab.goto(f"{server.url}/lead/en/")
        tab.wait_for_selector(".tile")
        tab.get_by_role("tab", name="People", exact=True).click()
        row = tab.locator("table.people tr:has-text('nova') td")
        expect(row.last).to_have_text(f"not passed · 0 of {ROUND} right", timeout=30_000)
        tab.get_by_role("button", name="Let pass by hand").click()
        tab.wait_for_selector("text=Choose a person first")
        tab.get_by_label("Person", exact=True).click()
        tab.get_by_role("option", name="nova", exact=True).click()
        tab.get_by_role("button", name="Let pass by hand").click()
        tab.wait_for_selector("text=nova may rank now.")
        expect(row.last).to_have_text(f"passed · 0 of {ROUND} right", timeout=30_000)

        page.get_by_role("button", name="Look again").click()
        page.wait_for_selector(".ranking")
        expect(line).to_have_text(f"Today {ROUND} · by me {ROUND} · project 0 of 150")
        tab.screenshot(path=str(tmp_path / "people.png"), full_page=True)
        assert lead.errors == newcomer.errors == []
    finally:
        server.kill()
