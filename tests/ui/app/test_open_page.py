"""A page stays open while the world changes: another login, new questions, a new guideline, a lost connection."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, Route, expect
from sqlalchemy import select

from preference_ui import queue
from preference_ui.db import Store
from preference_ui.guidelines import publish_guideline
from preference_ui.models import Judgment, Lease
from preference_ui.projects import get_guideline, get_project, update_settings
from preference_ui.settings import Axis, ProjectSettings
from preference_ui.views import stored_vote
from preference_ui.votes import Vote
from tests.ui.app.ui_helpers import Server, Visit, change_first_answer, free_port, log_in, seed, token_for

Make = Callable[..., Visit]
Site = tuple[Server, Store]
KEPT = (
    "where => Object.entries(localStorage).filter(([key]) => key.startsWith(where)).map(([, text]) => JSON.parse(text))"
)


def votes_of(store: Store, annotator_id: str) -> list[Vote]:
    """What the store holds of a person, by time."""
    with store.read() as session:
        query = (
            select(Lease)
            .join(Judgment, (Judgment.lease_id == Lease.id) & (Judgment.revision == Lease.revision))
            .where(Lease.annotator_id == annotator_id, Lease.state == "done")
            .order_by(Judgment.created)
        )
        return [vote for lease in session.scalars(query) if (vote := stored_vote(session, lease))]


def draft_of(store: Store, lease_id: str) -> dict[str, Any] | None:
    with store.read() as session:
        text = session.get_one(Lease, lease_id).draft_json
    return json.loads(text) if text else None


@contextmanager
def settings(store: Store, **changes: object) -> Iterator[None]:
    """Other settings for a while; the site is shared by all tests."""
    project = get_project(store, "helpline")
    update_settings(store, project.id, dataclasses.replace(project.settings, **changes), actor="test")
    try:
        yield
    finally:
        update_settings(store, project.id, project.settings, actor="test")


def move(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def test_an_answer_is_never_stored_as_somebody_elses(site: Site, visit: Make) -> None:
    server, store = site
    ann = visit(handle="shared-ann").open()
    page, lease = ann.page, ann.lease()
    bo, bo_token = token_for(store, "shared-bo")
    log_in(ann.context, server, bo_token)
    move(page, "2", "ArrowUp", "Control+Enter")
    page.wait_for_selector("dialog[open]:has-text('shared-bo has logged in')")
    assert [entry[0]["body"]["lease"] for entry in page.evaluate(KEPT, f"rlhf:outbox:{ann.annotator_id}")] == [lease]
    page.get_by_role("button", name="Load the page again").click()
    page.wait_for_selector(".account summary[title='Logged in as shared-bo']")
    page.wait_for_selector(".ranking")
    move(page, "4", "ArrowUp", "Control+Enter")
    ann.wait_saved()
    assert votes_of(store, ann.annotator_id) == []
    assert [list(t) for t in votes_of(store, bo)[0].tiers] == [[0], [1], [3], [2]]

    log_in(ann.context, server, ann.token)
    ann.open()
    ann.wait_saved()
    assert [list(t) for t in votes_of(store, ann.annotator_id)[0].tiers] == [[1], [0], [2], [3]]
    assert len(votes_of(store, bo)) == 1
    assert page.evaluate(KEPT, "rlhf:outbox:") == []
    assert ann.errors == []


def test_a_draft_waits_for_its_author_and_reaches_nobody_else(site: Site, visit: Make) -> None:
    server, store = site
    ann = visit(handle="draft-ann").open()
    page, lease = ann.page, ann.lease()
    _, bo_token = token_for(store, "draft-bo")
    log_in(ann.context, server, bo_token)
    move(page, "n")
    page.keyboard.type("hers alone")
    page.wait_for_selector("dialog[open]:has-text('draft-bo has logged in')")
    page.keyboard.press("Escape")
    page.wait_for_selector(".account summary[title='Logged in as draft-bo']")
    page.wait_for_selector(".ranking")
    assert page.input_value(".note textarea") == ""
    log_in(ann.context, server, ann.token)
    ann.open()
    assert ann.lease() == lease
    expect(page.locator(".note textarea")).to_have_value("hers alone")
    assert ann.errors == []


def test_what_is_being_sent_does_not_change(site: Site, visit: Make) -> None:
    _, store = site
    someone = visit().open()
    page, lease = someone.page, someone.lease()
    someone.context.route("**/api/submit", lambda route: route.abort())
    move(page, "2", "ArrowUp", "Control+Enter")
    someone.wait_saved("Not saved")
    status = page.locator(".status")
    assert status.evaluate("node => node.closest('[inert]') === null")
    expect(status).to_be_in_viewport()
    for part in (".submit", ".tiers", ".cards", ".note textarea", ".skip"):
        assert page.locator(part).first.evaluate("node => node.closest('[inert]') !== null"), part
    move(page, "4", "ArrowUp", "b", "s", "u")
    assert someone.tiers() == [[1], [0], [2], [3]]
    assert page.query_selector("dialog[open]") is None
    someone.context.unroute("**/api/submit")
    someone.wait_new_task(lease)
    someone.wait_saved()
    vote = votes_of(store, someone.annotator_id)[0]
    assert ([list(t) for t in vote.tiers], vote.all_bad) == ([[1], [0], [2], [3]], False)
    assert page.locator("[inert]").count() == 0
    move(page, "3", "ArrowUp")
    someone.wait_tiers([[0], [2], [1], [3]])
    assert someone.errors == []


def test_an_answer_whose_receipt_was_lost_is_sent_again_as_it_was(site: Site, visit: Make) -> None:
    _, store = site
    someone = visit().open()
    page, lease = someone.page, someone.lease()

    def lose(route: Route) -> None:
        route.fetch()
        route.abort()

    someone.context.route("**/api/submit", lose, times=1)
    page.click('.card[data-slot="1"] label.step:has([aria-label="Helpful: 6"])')
    move(page, "1", "ArrowDown", "Control+Enter")
    someone.wait_saved("Not saved")
    # A script's way in: the page itself takes no more input.
    page.evaluate('document.querySelector(\'.card[data-slot="1"] [aria-label="Helpful: 2"]\').click()')
    someone.wait_new_task(lease)
    someone.wait_saved()
    assert [vote.ratings for vote in votes_of(store, someone.annotator_id)] == [{1: {"helpful": 6}}]
    assert someone.errors == []


def test_an_answer_waits_through_a_logout_and_goes_on_by_itself(site: Site, visit: Make) -> None:
    server, store = site
    someone = visit(handle="patient").open()
    page, lease = someone.page, someone.lease()
    log_in(someone.context, server, "0" * 43)
    move(page, "2", "ArrowUp", "Control+Enter")
    someone.wait_saved("you are logged out")
    assert page.locator(".cards").evaluate("node => node.closest('[inert]') !== null")
    log_in(someone.context, server, someone.token)
    someone.wait_new_task(lease)
    someone.wait_saved()
    assert len(votes_of(store, someone.annotator_id)) == 1
    assert someone.errors == []


def test_questions_that_changed_under_an_open_page(site: Site, visit: Make) -> None:
    _, store = site
    someone = visit().open()
    page, lease = someone.page, someone.lease()
    page.click('.card[data-slot="1"] label.step:has([aria-label="Helpful: 6"])')
    page.click('.card[data-slot="1"] label.step:has([aria-label="Honest: 5"])')
    page.click('.card[data-slot="0"] .edit-open')
    page.fill('.card[data-slot="0"] textarea', "A better answer.")
    page.fill(".note textarea", "my reasons")
    page.click('.card[data-slot="2"] [aria-label="Move response C up"]')
    with settings(store, axes=(Axis("honest", 1, 3), Axis("clear")), flags=("spam",), allow_edits=False):
        page.click(".submit")
        someone.wait_saved("the project asks something else by now")
        assert someone.lease() == lease
        someone.wait_tiers([[0], [2], [1], [3]])
        assert page.input_value(".note textarea") == "my reasons"
        assert page.locator(".notice.narrower").count() == 1
        assert page.locator('[aria-label="Helpful: 6"], .edit-open').count() == 0
        page.click('.card[data-slot="1"] label.step:has([aria-label="Clear: 4"])')
        page.click(".side summary")
        page.click('.side label.flag:has-text("Spam")')
        page.click(".submit")
        someone.wait_new_task(lease)
        someone.wait_saved()
        assert page.locator(".notice").count() == 0
    vote = votes_of(store, someone.annotator_id)[0]
    assert (vote.ratings, vote.edits, vote.rationale) == ({1: {"clear": 4}}, {}, "my reasons")
    assert list(vote.flags) == [(None, "spam")]

    # An old answer, taken back: what is no longer asked does not stand in its way.
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("u")
    someone.wait_saved("taken back")
    page.keyboard.press("Control+Enter")
    someone.wait_new_task(lease)
    someone.wait_saved()
    assert [vote.ratings for vote in votes_of(store, someone.annotator_id)] == [{}]
    assert page.evaluate(KEPT, "rlhf:outbox:") == []
    assert someone.errors == []


def test_an_answer_from_an_earlier_visit_that_no_longer_fits_is_shown_again(site: Site, visit: Make) -> None:
    _, store = site
    someone = visit().open()
    page, lease = someone.page, someone.lease()
    someone.context.route("**/api/submit", lambda route: route.abort())
    page.click('.card[data-slot="3"] label.step:has([aria-label="Helpful: 7"])')
    move(page, "4", "ArrowUp", "Control+Enter")
    someone.wait_saved("Not saved")
    page.close(run_before_unload=False)
    someone.context.unroute("**/api/submit")
    queue.release(store, someone.annotator_id, lease)
    page = someone.page = someone.context.new_page()
    with settings(store, axes=(Axis("honest", 1, 5),)):
        someone.open()
        someone.wait_saved("the project asks something else by now")
        assert someone.lease() == lease
        someone.wait_tiers([[0], [1], [3], [2]])
        page.keyboard.press("Control+Enter")
        someone.wait_new_task(lease)
        someone.wait_saved()
    assert [list(t) for t in votes_of(store, someone.annotator_id)[0].tiers] == [[0], [1], [3], [2]]
    assert page.evaluate(KEPT, "rlhf:outbox:") == []


def test_a_draft_keeps_what_the_project_asks(site: Site, visit: Make) -> None:
    someone = visit().open()
    draft = {
        "tiers": [[1], [0]],
        "strength": -1,
        "rationale": "why",
        "flags": [[0, "a"], [7, "a"], [None, "a"], [0, "b"], 3],
        "ratings": {"0": {"x": 3, "gone": 1}, "1": {"x": 9}, "7": {"x": 1}, "n": {"x": 1}},
        "edits": {"1": "t", "5": "u", "0": 4},
    }
    questions = {"axes": [{"name": "x", "low": 1, "high": 5}], "flags": ["a"], "strengths": 4, "edits": True}
    ballot, narrower, whole = someone.page.evaluate(
        """async ([draft, questions]) => {
            const { ballotFrom, isNarrower } = await import('/static/ballot.js');
            const ballot = ballotFrom(draft, 2, questions);
            return [ballot, isNarrower(ballot, draft), isNarrower(ballot, ballot)];
        }""",
        [draft, questions],
    )
    assert ballot == {
        "tiers": [[1], [0]], "strength": None, "all_bad": False, "rationale": "why", "flags": [[0, "a"], [None, "a"]],
        "ratings": {"0": {"x": 3}}, "edits": {"1": "t"},
    }  # fmt: skip
    assert (narrower, whole) == (True, False)


def test_a_new_guideline_is_announced_until_it_was_seen(tmp_path: Path, visit: Make) -> None:
    path = tmp_path / "own.sqlite"
    store = seed(path, ProjectSettings(overlap=2), num_items=5)
    server = Server(path, free_port())
    server.start()
    try:
        someone = visit(where=(server, store), handle="reader").open()
        page, lease = someone.page, someone.lease()
        project = get_project(store, "helpline").id
        publish_guideline(store, project, "# Rules\n\nShort is good.", reason="length", actor="test")
        page.reload()
        page.wait_for_selector(".ranking")
        assert page.locator(".guideline-news").count() == 0, (
            "this task is still ranked by the version it was taken under"
        )
        move(page, "2", "ArrowUp", "Control+Enter")
        someone.wait_new_task(lease)
        news = page.locator(".guideline-news")
        assert "Version 2 is in force now" in news.inner_text()
        page.reload()
        page.wait_for_selector(".guideline-news")
        news.get_by_role("button", name="Read them").click()
        page.wait_for_selector(".reading-page >> text=Short is good.")
        page.get_by_role("tab", name="Rank").click()
        page.wait_for_selector(".ranking")
        assert news.count() == 0
        page.reload()
        page.wait_for_selector(".ranking")
        assert news.count() == 0

        publish_guideline(store, project, get_guideline(store, project) + "!", reason="tone", actor="test")
        lease = someone.lease()
        move(page, "2", "ArrowUp", "Control+Enter")
        someone.wait_new_task(lease)
        news.get_by_role("button", name="Close").click()
        assert news.count() == 0
        assert someone.errors == []
    finally:
        server.kill()


def test_a_short_hold_lasts_while_its_task_is_read(site: Site, visit: Make) -> None:
    _, store = site
    with settings(store, lease_seconds=3.0):
        someone = visit().open()
        lease = someone.lease()
        someone.page.wait_for_timeout(5000)
        with store.read() as session:
            assert session.get_one(Lease, lease).expires > store.clock()
    assert sum(url.endswith("/api/renew") for url in someone.requests) >= 2


def test_words_typed_while_a_draft_is_being_saved_are_saved_too(site: Site, visit: Make) -> None:
    _, store = site
    someone = visit().open()
    page, lease = someone.page, someone.lease()
    move(page, "1", "ArrowDown", "Control+Enter")
    someone.wait_new_task(lease)
    change_first_answer(page)
    held: list[Route] = []
    someone.context.route("**/api/draft", lambda route: held.append(route), times=1)
    move(page, "n")
    page.keyboard.type("first")
    with page.expect_request("**/api/draft"):
        page.wait_for_timeout(1)
    page.keyboard.type(" and second")
    held[0].continue_()
    page.wait_for_timeout(300)
    assert "Draft saved" not in page.inner_text(".status")
    assert page.evaluate(KEPT, "rlhf:draft:")[0]["rationale"] == "first and second"
    someone.wait_saved("Draft saved")
    draft = draft_of(store, lease)
    assert draft is not None
    assert draft["rationale"] == "first and second"
    assert page.evaluate(KEPT, "rlhf:draft:") == []
    assert someone.errors == []


def test_a_draft_that_the_server_did_not_keep_is_not_called_saved(site: Site, visit: Make) -> None:
    server, _ = site
    someone = visit().open()
    page, lease = someone.page, someone.lease()
    with server.client(someone.token) as second_tab:
        body = {"lease": lease, "revision": 1, "vote": {"tiers": [[0], [1], [2], [3]]}}
        assert second_tab.post("/api/submit", json=body).status_code == 200
    move(page, "n")
    page.keyboard.type("too late")
    someone.wait_saved("this task has an answer already")
    assert page.evaluate(KEPT, "rlhf:draft:")[0]["rationale"] == "too late"


def test_a_hold_is_long_enough_to_read_a_task(site: Site, visit: Make) -> None:
    _, store = site
    lead = visit(role="admin")
    page = lead.page
    page.goto(f"{lead.server.url}/lead/en/")
    page.get_by_role("tab", name="Settings").click()
    minutes = page.get_by_label("Minutes a task is held")
    expect(minutes).to_have_value("15", timeout=30_000)
    minutes.fill("4")
    page.get_by_role("button", name="Save the settings").click()
    page.wait_for_selector("text=Minutes a task is held: must be at least 5.")
    assert get_project(store, "helpline").settings.lease_seconds == 900


def test_all_own_answers_can_be_reached(tmp_path: Path, visit: Make) -> None:
    path = tmp_path / "own.sqlite"
    store = seed(path, ProjectSettings(overlap=1), num_items=103)
    server = Server(path, free_port())
    server.start()
    try:
        someone = visit(where=(server, store), handle="diligent")
        leases = []
        for _ in range(102):
            task = queue.claim(store, "helpline", someone.annotator_id)
            assert task is not None
            queue.submit(store, someone.annotator_id, task.lease_id, Vote(tiers=[[0], [1], [2], [3]]))
            leases.append(task.lease_id)
        page = someone.open().page
        page.get_by_role("tab", name="My answers").click()
        expect(page.locator(".answers li")).to_have_count(100)
        older = page.get_by_role("button", name="Older answers")
        older.focus()
        page.keyboard.press("Enter")
        expect(page.locator(".answers li")).to_have_count(102)
        expect(older).to_be_hidden()
        assert page.evaluate("document.activeElement.textContent") == "Change"
        page.locator(".answers li").last.get_by_role("button").click()
        page.wait_for_selector(".ranking .notice")
        assert someone.lease() == leases[0]
        assert someone.errors == []
    finally:
        server.kill()
