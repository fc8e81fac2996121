"""Leads at work on what people said: two of them on one guideline, the votes of a task, its state, a person's votes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from preference_ui import queue
from preference_ui.app.address import Address
from preference_ui.app.dashboard import Dashboard
from preference_ui.app.site import Site
from preference_ui.db import Store
from preference_ui.export import read_snapshot
from preference_ui.guidelines import publish_guideline
from preference_ui.items import find_items
from preference_ui.people import ensure_annotator, find_annotator
from preference_ui.projects import get_guideline, get_project
from preference_ui.reviews import Seen, decide, decisions, inbox
from preference_ui.votes import Vote
from tests.ui.app.ui_helpers import Server, Visit, free_port, seed, violations

ITEMS = 5


@pytest.fixture
def place(tmp_path: Path) -> tuple[Server, Store]:
    """Two people who disagree on everything, with reasons and flags; each saw an order of their own."""
    store = seed(tmp_path / "p.sqlite", num_items=ITEMS)
    for handle, upside_down in (("ann", False), ("bo", True)):
        who = ensure_annotator(store, handle).id
        for _ in range(ITEMS):
            task = queue.claim(store, "helpline", who)
            if task is None:
                raise AssertionError("no task")
            order = sorted(range(4), key=lambda slot: task.responses[slot], reverse=upside_down)
            vote = Vote(tiers=[[s] for s in order], rationale=f"{'ABCD'[order[0]]} is best", all_bad=upside_down,
                        flags=[(order[-1], "pii")], ratings={order[0]: {"helpful": 7}})  # fmt: skip
            queue.submit(store, who, task.lease_id, vote)
    return Server(tmp_path / "p.sqlite", free_port()), store


def _open(server: Server, page: Page, tab: str) -> None:
    page.goto(f"{server.url}/lead/en/")
    page.wait_for_selector(".tile")
    page.get_by_role("tab", name=tab, exact=True).click()


def _task(page: Page) -> str:
    return page.locator(".decision:visible").inner_text()


def _wait_next_task(page: Page, before: str) -> None:
    """A message comes before an event is over, and until then the same button is not heard again."""
    expect(page.locator(".decision:visible")).not_to_have_text(before, use_inner_text=True, timeout=30_000)


def test_a_guideline_is_never_taken_back_unseen(place: tuple[Server, Store], visit: Callable[..., Visit]) -> None:
    server, store = place
    project = get_project(store, "helpline").id
    server.start()
    try:
        lead = visit(where=place, role="reviewer", handle="boss")
        other = ensure_annotator(store, "other").id
        page = lead.page
        _open(server, page, "Guidelines")
        words = page.get_by_label("Guidelines (Markdown)")
        expect(words).to_have_value(get_guideline(store, project), timeout=30_000)
        words.fill("# Second")
        page.get_by_role("button", name="Publish").click()
        page.wait_for_selector("text=Version 2 is in force")
        # The box on the other tab was not typed into: it follows, and a decision publishes nothing.
        page.get_by_role("tab", name="Disagreements").click()
        page.wait_for_selector(".decision .votes li >> visible=true")  # the box is filled before the task is there
        expect(page.get_by_label("New guideline")).to_have_value("# Second", timeout=30_000)
        task = _task(page)
        page.get_by_role("button", name="Decide").click()
        page.wait_for_selector("text=Decided.")
        assert get_project(store, project).guideline_version == 2

        # Another lead publishes meanwhile: what starts from the older text is refused, and stays in its box.
        _wait_next_task(page, task)
        page.get_by_label("New guideline").fill("# Second, and more")
        publish_guideline(store, project, "# Third", reason="", actor=other)
        page.get_by_role("button", name="Decide").click()
        page.wait_for_selector("text=Version 3 of the guidelines is in force now")
        expect(page.get_by_label("New guideline")).to_have_value("# Second, and more")
        page.get_by_role("tab", name="Guidelines").click()
        expect(words).to_have_value("# Third", timeout=30_000)  # nobody had typed into this one
        words.fill("# Third, mended")
        publish_guideline(store, project, "# Fourth", reason="", actor=other)
        page.get_by_role("button", name="Publish").click()
        page.wait_for_selector("text=Version 4 of the guidelines is in force now")
        expect(words).to_have_value("# Third, mended")
        assert get_guideline(store, project) == "# Fourth"
        assert len(inbox(store, "helpline")) == ITEMS - 1

        # Another lead decides the task on the screen: it is said, and the reason is kept.
        _open(server, page, "Disagreements")
        page.wait_for_selector(".decision .votes li")
        taken = inbox(store, "helpline")[0].item_id
        decide(store, taken, "subjective", "", decided_by=other, seen=Seen(None, 0))
        page.get_by_label("Reason", exact=True).fill("long thought about")
        task = _task(page)
        page.get_by_role("button", name="Decide").click()
        page.wait_for_selector("text=other has decided this task meanwhile")
        _wait_next_task(page, task)
        expect(page.get_by_label("Reason", exact=True)).to_have_value("long thought about")
        assert len(decisions(store, taken)) == 1
        # The next task is on the screen now; it is decided and retired.
        following = inbox(store, "helpline")[0].item_id
        page.get_by_label("Somebody is wrong").check()
        page.get_by_label("Retire the task").check()
        page.get_by_role("button", name="Decide").click()
        expect(page.get_by_label("Retire the task")).not_to_be_checked(timeout=30_000)
        assert [(d.verdict, d.note) for d in decisions(store, following)] == [("rater_error", "long thought about")]
        assert [line.item_id for line in find_items(store, "helpline", state="retired").lines] == [following]

        # The server starts anew: what the page shows can be decided all the same, and nothing typed is lost.
        later = inbox(store, "helpline")[0].item_id
        page.get_by_label("Reason", exact=True).fill("typed before")
        page.get_by_label("New guideline").fill("# Fourth, and more")
        server.kill()
        server.start()
        page.get_by_role("tab", name="Items").click()
        page.get_by_role("tab", name="Disagreements").click()
        page.get_by_label("The guideline is unclear").check()
        page.get_by_role("button", name="Decide").click()
        page.wait_for_selector("text=Decided.")
        assert [(d.verdict, d.note) for d in decisions(store, later)] == [("guideline_unclear", "typed before")]
        assert get_guideline(store, project) == "# Fourth, and more"
        assert lead.errors == []
    finally:
        server.kill()


def test_a_task_tells_whose_letters_a_reason_speaks_of(
    place: tuple[Server, Store], visit: Callable[..., Visit]
) -> None:
    server, store = place
    server.start()
    try:
        lead = visit(where=place, role="admin", handle="boss")
        page = lead.page
        _open(server, page, "Items")
        page.get_by_label("Words in the prompt").fill("router 3")
        page.get_by_role("button", name="Search").click()
        expect(page.get_by_label("Result")).to_have_value("1 items, page 1 of 1", timeout=30_000)
        page.locator(".item-list label").click()
        page.wait_for_selector(".decision .votes li >> visible=true")
        shown = page.locator(".decision:visible")
        texts = [card.inner_text() for card in shown.locator(".card .card-body").all()]
        (item,) = find_items(store, "helpline", text="router 3").lines
        with store.read() as session:
            snapshot = read_snapshot(session, "helpline", item_ids=[item.item_id])
        for vote, line in zip(snapshot.judgments, shown.locator(".votes li").all(), strict=True):
            words = line.inner_text()
            # "2 (B) > ...": the second card is the text that this person saw as B and put first.
            number, letter = re.search(r"(\d) \(([A-D])\) >", words).groups()  # type: ignore[union-attr]
            best = vote.tiers[0][0]
            assert vote.shown["ABCD".index(letter)] == best and f"{letter} is best" in words
            first_words = re.split(r"\W+", snapshot.texts[best].strip())[:2]
            assert all(word in texts[int(number) - 1] for word in first_words)
            assert (
                f"{vote.handle} " in words
                and "⚑ Personal data" in words
                and f"Helpful – {number} ({letter}): 7" in words
            )
            assert ("None is acceptable" in words) is vote.all_bad
        assert page.evaluate("[...document.querySelectorAll('.katex')].every(k => k.textContent.length < 40)")

        page.get_by_label("Priority").fill("5")
        page.get_by_label("Retired").last.check()
        page.get_by_role("button", name="Save the item").click()
        page.wait_for_selector("text=The item is changed.")
        (line,) = find_items(store, "helpline", state="retired").lines
        assert (line.item_id, line.priority) == (item.item_id, 5.0)
        page.wait_for_selector(".item-list label:has-text('Retired')")
        assert violations(page) == []
        assert lead.errors == []
    finally:
        server.kill()


def test_votes_of_a_person_are_set_aside_after_a_question(
    place: tuple[Server, Store], visit: Callable[..., Visit]
) -> None:
    server, store = place
    server.start()
    try:
        lead = visit(where=place, role="admin", handle="boss")
        page = lead.page
        _open(server, page, "People")
        page.wait_for_selector("table.people")
        page.get_by_label("Person").click()
        page.get_by_role("option", name="bo", exact=True).click()
        page.get_by_role("button", name="Set all votes aside").click()
        page.wait_for_selector("text=Say why first.")
        page.get_by_label("Why (kept").fill("clicks at random")
        page.get_by_role("button", name="Set all votes aside").click()
        sure = page.get_by_role("button", name=f"Yes, set {ITEMS} votes of bo aside")
        sure.wait_for()
        # With another person in the box the question is a new one.
        page.get_by_label("Person").click()
        page.get_by_role("option", name="ann", exact=True).click()
        sure.click()
        page.wait_for_selector("text=The question was about somebody else.")
        with store.read() as session:
            assert {j.handle for j in read_snapshot(session, "helpline").judgments} == {"ann", "bo"}
        page.get_by_label("Person").click()
        page.get_by_role("option", name="bo", exact=True).click()
        sure.click()
        page.wait_for_selector(f"text={ITEMS} votes of bo are set aside.")
        with store.read() as session:
            assert {j.handle for j in read_snapshot(session, "helpline").judgments} == {"ann"}
        expect(page.locator("table.people tr:has-text('bo') td").nth(3).first).to_have_text("0", timeout=30_000)
        page.get_by_role("button", name="Let votes set aside count again").click()
        page.wait_for_selector(f"text={ITEMS} votes of bo count again.")
        with store.read() as session:
            assert len(read_snapshot(session, "helpline").judgments) == 2 * ITEMS
        assert lead.errors == []
    finally:
        server.kill()


def take_back(store: Store, annotator_id: str) -> None:
    """The newest answer, as the page's button does."""
    newest = queue.last_decided(store, "helpline", annotator_id)
    if newest is None:
        raise AssertionError("no answer")
    queue.withdraw(store, annotator_id, newest)


def test_figures_are_computed_again_after_a_minute_or_when_asked(
    place: tuple[Server, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every claim moves the chain: a page that is opened does not compute everything again for that."""
    server, store = place
    now = [1000.0]
    monkeypatch.setattr("preference_ui.app.dashboard.time.monotonic", lambda: now[0])
    dashboard = Dashboard(Site(store, "helpline", Address(server.url)))
    first = dashboard.figures()[1]
    who = find_annotator(store, "ann")
    assert who is not None and first.votes == 2 * ITEMS
    take_back(store, who.id)
    now[0] += 59
    assert dashboard.figures()[1] is first
    assert "As of " in dashboard.render("en")
    assert dashboard.figures(renew=True)[1].votes == 2 * ITEMS - 1
    take_back(store, who.id)
    now[0] += 59
    assert dashboard.figures()[1].votes == 2 * ITEMS - 1
    now[0] += 2
    assert dashboard.figures()[1].votes == 2 * ITEMS - 2
