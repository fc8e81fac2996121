"""The lead's forms change what their boxes show, of whom they show it, and nothing that somebody else has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from playwright.sync_api import Page, Route, expect

from preference_ui import queue
from preference_ui.db import Store
from preference_ui.export import read_snapshot
from preference_ui.items import change_item, find_items
from preference_ui.people import create_annotator, find_annotator, update_annotator
from preference_ui.projects import get_project, update_settings
from preference_ui.votes import Vote
from tests.ui.app.ui_helpers import SETTINGS, Server, Visit, free_port, seed

JOIN = "**/gradio_api/queue/join*"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Store]]:
    path = tmp_path_factory.mktemp("forms") / "p.sqlite"
    store = seed(path, num_items=4)
    server = Server(path, free_port())
    server.start()
    yield server, store
    server.kill()


@contextmanager
def slow_answers(page: Page) -> Iterator[list[Route]]:
    """Nothing that the page sends arrives before this ends, or before its route is continued."""
    held: list[Route] = []
    is_slow = True

    def hold(route: Route) -> None:
        if is_slow:
            held.append(route)
        else:
            route.fallback()

    page.route(JOIN, hold)
    yield held
    is_slow = False
    for route in held:
        route.continue_()


def open_tab(server: Server, page: Page, tab: str) -> None:
    page.goto(f"{server.url}/lead/en/")
    page.wait_for_selector(".tile")
    page.get_by_role("tab", name=tab, exact=True).click()


def choose(page: Page, name: str) -> None:
    page.get_by_label("Person", exact=True).click()
    page.get_by_role("option", name=name, exact=True).click()


def role_box(page: Page, role: str) -> object:
    """Of the form that changes somebody; the first one is for new accounts."""
    return page.get_by_label(role, exact=True).last


def test_an_accounts_role_goes_to_nobody_else(place: tuple[Server, Store], visit: Callable[..., Visit]) -> None:
    server, store = place
    ids = {handle: create_annotator(store, handle, role=role).id
           for handle, role in (("ada", "admin"), ("bea", "reviewer"), ("cid", "annotator"))}  # fmt: skip
    lead = visit(where=place, role="admin", handle="forms-boss")
    page = lead.page
    open_tab(server, page, "People")
    page.wait_for_selector("table.people >> text=cid")
    # Bea is chosen while Ada's account is on its way: the boxes end up with Bea's.
    with slow_answers(page) as held:
        choose(page, "ada")
        page.wait_for_timeout(200)
        choose(page, "bea")
        page.wait_for_timeout(200)
        assert held
    expect(role_box(page, "Reviewer")).to_be_checked(timeout=30_000)
    page.get_by_role("button", name="Change", exact=True).click()
    page.wait_for_selector("text=Changed.")
    assert find_annotator(store, "bea").role == "reviewer"  # type: ignore[union-attr]

    # "Change" arrives while the boxes show somebody else.
    choose(page, "ada")
    expect(role_box(page, "Admin")).to_be_checked(timeout=30_000)
    with slow_answers(page) as held:
        choose(page, "bea")
        page.wait_for_timeout(200)
        page.get_by_role("button", name="Change", exact=True).click()
        page.wait_for_timeout(200)
        assert len(held) > 1
        held.pop().continue_()  # the click's
        page.wait_for_selector("text=These boxes still show somebody else")
    expect(role_box(page, "Reviewer")).to_be_checked(timeout=30_000)
    assert find_annotator(store, "bea").role == "reviewer"  # type: ignore[union-attr]

    # Another admin closes the account meanwhile: an old form does not open it again, and says why.
    choose(page, "cid")
    expect(role_box(page, "Annotator")).to_be_checked(timeout=30_000)
    update_annotator(store, ids["cid"], actor=ids["ada"], active=False)
    role_box(page, "Reviewer").check()
    page.get_by_role("button", name="Change", exact=True).click()
    page.wait_for_selector("text=cid's account was changed by somebody else meanwhile")
    person = find_annotator(store, "cid")
    assert person is not None and (person.role, person.active) == ("annotator", False)
    expect(page.get_by_label("Active")).not_to_be_checked(timeout=30_000)
    role_box(page, "Reviewer").check()
    page.get_by_role("button", name="Change", exact=True).click()
    expect(page.locator("table.people tr:has-text('cid') td").nth(1)).to_have_text("Reviewer", timeout=30_000)
    person = find_annotator(store, "cid")
    assert person is not None and (person.role, person.active) == ("reviewer", False)
    assert lead.errors == []


def item_choice(page: Page, words: str) -> None:
    page.locator(f".item-list label:has-text('{words}')").click()


def test_an_items_boxes_go_to_no_other_item(place: tuple[Server, Store], visit: Callable[..., Visit]) -> None:
    server, store = place
    lines = find_items(store, "helpline").lines
    first, second, third = (line.item_id for line in lines[:3])
    change_item(store, "helpline", first, actor="lead", retired=True, priority=3.0)
    lead = visit(where=place, role="reviewer", handle="forms-items")
    page = lead.page
    open_tab(server, page, "Items")
    names = [line.opening for line in lines[:3]]
    item_choice(page, names[0])
    expect(page.get_by_label("Priority (higher")).to_have_value("3", timeout=30_000)
    expect(page.get_by_label("Retired").last).to_be_checked()
    save = page.get_by_role("button", name="Save the item")
    # "Save" arrives while the boxes still show the retired item.
    with slow_answers(page) as held:
        item_choice(page, names[1])
        page.wait_for_timeout(200)
        save.click()
        page.wait_for_timeout(200)
        assert len(held) > 1
        held.pop().continue_()  # the click's
        page.wait_for_selector("text=These boxes still show another item")
    expect(page.get_by_label("Priority (higher")).to_have_value("0", timeout=30_000)

    # Somebody else retires it meanwhile: an older view does not take it back.
    change_item(store, "helpline", second, actor="other", retired=True)
    page.get_by_label("Priority (higher").fill("7")
    save.click()
    page.wait_for_selector("text=Somebody else has changed the item meanwhile")
    expect(page.get_by_label("Retired").last).to_be_checked(timeout=30_000)
    expect(page.get_by_label("Priority (higher")).to_have_value("0")
    page.get_by_label("Priority (higher").fill("7")
    save.click()
    page.wait_for_selector("text=The item is changed.")
    # What was saved is what the next change starts from.
    expect(page.locator(".item-list label:has-text('priority 7')")).to_be_visible(timeout=30_000)
    page.get_by_label("Retired").last.uncheck()
    save.click()
    page.wait_for_selector(".item-list label:has-text('Open · 0 of 50 votes · priority 7')")
    found = {line.item_id: (line.priority, line.state) for line in find_items(store, "helpline").lines}
    assert (found[first], found[second], found[third]) == ((3.0, "retired"), (7.0, "open"), (0.0, "open"))
    assert lead.errors == []


def test_settings_are_written_where_they_were_changed(place: tuple[Server, Store], visit: Callable[..., Visit]) -> None:
    """Of two admins neither undoes the other's change; what the form rounds stays as it is."""
    server, store = place
    project = get_project(store, "helpline")
    # The form shows 0.0 days and 1 minute, less than it takes.
    start = replace(project.settings, repeat_after_seconds=1.0, lease_seconds=60.0, min_seconds=1 / 3)
    update_settings(store, project.id, start, actor="command line")
    lead = visit(where=place, role="admin", handle="forms-settings")
    page = lead.page
    open_tab(server, page, "Settings")
    expect(page.get_by_label("Votes per task")).to_have_value("50", timeout=30_000)
    save = page.get_by_role("button", name="Save the settings")
    page.get_by_label("Votes per task").fill("4")
    page.get_by_label("Time zone").fill("Europe/Atlantis")
    save.click()
    page.wait_for_selector("text=This machine knows no time zone 'Europe/Atlantis'")
    page.get_by_label("Time zone").fill("Europe/Copenhagen")
    page.get_by_label("Minutes a task is held").fill("2")
    save.click()
    page.wait_for_selector("text=Minutes a task is held: must be at least 5.")
    page.get_by_label("Minutes a task is held").fill("1")
    save.click()
    page.wait_for_selector("text=The settings are saved")
    saved = replace(start, overlap=4, time_zone="Europe/Copenhagen")
    assert get_project(store, "helpline").settings == saved

    # Another admin changes something meanwhile.
    theirs = replace(saved, max_skips=7)
    update_settings(store, project.id, theirs, actor="other")
    page.get_by_label("Votes per task").fill("5")
    save.click()
    page.wait_for_selector(
        "text=Somebody else has changed the settings meanwhile (Skips that send a task to the inbox)"
    )
    assert get_project(store, "helpline").settings == theirs
    expect(page.get_by_label("Votes per task")).to_have_value("5")
    page.reload()
    page.wait_for_selector(".tile")
    page.get_by_role("tab", name="Settings").click()
    expect(page.get_by_label("Skips that send")).to_have_value("7", timeout=30_000)
    page.get_by_label("Ties are allowed").uncheck()
    save.click()
    page.wait_for_selector("text=The settings are saved")
    assert get_project(store, "helpline").settings == replace(theirs, allow_ties=False)
    assert lead.errors == []


def test_a_vote_is_set_aside_with_the_decision(place: tuple[Server, Store], visit: Callable[..., Visit]) -> None:
    server, store = place
    update_settings(store, get_project(store, "helpline").id, SETTINGS, actor="command line")
    raters = {name: create_annotator(store, name).id for name in ("one", "two")}
    for upside_down, who in enumerate(raters.values()):
        task = queue.claim(store, "helpline", who)
        if task is None:
            raise AssertionError("no task")
        order = sorted(range(4), key=lambda slot: task.responses[slot], reverse=bool(upside_down))
        queue.submit(store, who, task.lease_id, Vote(tiers=[[s] for s in order], flags=[(0, "pii")]))
    lead = visit(where=place, role="reviewer", handle="forms-inbox")
    page = lead.page
    open_tab(server, page, "Disagreements")
    page.wait_for_selector(".decision .votes li >> visible=true")
    assert "Personal data" in page.locator(".decision:visible .votes").inner_text()
    page.get_by_label("two", exact=True).check()
    page.get_by_label("Ask for one more vote").check()
    page.get_by_role("button", name="Decide").click()
    page.wait_for_selector("text=Say why first.")
    page.get_by_label("Reason", exact=True).fill("upside down")
    page.get_by_role("button", name="Decide").click()
    page.wait_for_selector("text=Decided.")
    page.wait_for_selector("text=No disagreements to decide.")
    expect(page.get_by_label("Ask for one more vote")).not_to_be_checked()
    assert page.get_by_label("two", exact=True).count() == 0
    with store.read() as session:
        assert [j.annotator_id for j in read_snapshot(session, "helpline").judgments] == [raters["one"]]
    assert [line.needed for line in find_items(store, "helpline").lines if line.done] == [51]
    assert lead.errors == []
