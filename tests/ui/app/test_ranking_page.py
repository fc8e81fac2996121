"""People at a real browser rank, tie, correct, skip, undo and change their minds; the store holds what they meant."""

from __future__ import annotations

import json
from collections.abc import Callable

from playwright.sync_api import expect
from sqlalchemy import select

from preference_ui import queue
from preference_ui.app.site import page_digest
from preference_ui.db import Store
from preference_ui.export import demonstrations, preference_rows, read_snapshot
from preference_ui.models import Judgment, Lease
from preference_ui.views import stored_vote
from preference_ui.votes import Vote
from tests.ui.app.ui_helpers import PASSWORD, Server, Visit, change_first_answer, token_for

Make = Callable[..., Visit]
Site = tuple[Server, Store]


def vote_of(store: Store, lease_id: str) -> Vote:
    with store.read() as session:
        lease = session.scalars(select(Lease).where(Lease.id == lease_id)).one()
        vote = stored_vote(session, lease)
    if vote is None:
        raise AssertionError("no vote is stored")
    return vote


def test_login_and_a_ranking_by_keyboard_alone(site: Site, visit: Make) -> None:
    server, store = site
    token_for(store, "keyboard")
    someone = visit()
    page = someone.page
    someone.context.clear_cookies()
    page.goto(server.url)
    # the field takes the focus by itself, at the first rendering after the page has loaded
    page.wait_for_function("() => document.activeElement.name === 'handle'")
    page.keyboard.type("keyboard")
    page.keyboard.press("Tab")
    page.keyboard.type("wrong password")
    page.keyboard.press("Enter")
    page.wait_for_selector("[role=alert]")
    assert "wrong" in page.inner_text("[role=alert]")
    assert page.input_value("[name=handle]") == "keyboard"
    page.fill("[name=password]", PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_selector(".ranking")
    cookie = next(c for c in someone.context.cookies() if c["name"] == server.cookie)
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Lax"

    lease = someone.lease()
    for key in ("3", "ArrowUp", "ArrowUp", "2", "=", "b", "n"):
        page.keyboard.press(key)
    someone.wait_tiers([[2], [0, 1], [3]])
    page.wait_for_function("() => document.querySelector('.rlhf-live').textContent.length > 0")
    page.keyboard.type("s and u and b are words here")
    page.keyboard.press("Control+Enter")
    someone.wait_saved()
    vote = vote_of(store, lease)
    assert [list(t) for t in vote.tiers] == [[2], [0, 1], [3]]
    assert vote.all_bad
    assert vote.rationale == "s and u and b are words here"
    assert vote.active_ms is not None
    assert "Today 1 · by me 1" in page.inner_text(".progress-line")

    someone.wait_new_task(lease)
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("u")
    someone.wait_saved("taken back")
    assert someone.lease() == lease
    someone.wait_tiers([[2], [0, 1], [3]])
    assert page.is_checked(".bad input")
    page.keyboard.press("b")
    page.keyboard.press("1")
    assert page.evaluate("document.activeElement.dataset.slot") == "0"
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.dataset.slot") == "0"
    page.keyboard.press("Control+Enter")
    someone.wait_saved()
    changed = vote_of(store, lease)
    assert [list(t) for t in changed.tiers] == [[2], [1], [0], [3]]
    assert not changed.all_bad
    with store.read() as session:
        rows = session.scalars(select(Judgment).where(Judgment.lease_id == lease).order_by(Judgment.revision)).all()
    assert [(r.revision, r.retracted) for r in rows] == [(1, False), (2, True), (3, False)]
    assert someone.errors == []


def test_a_change_in_the_making_survives_a_closed_browser(site: Site, visit: Make) -> None:
    _, store = site
    someone = visit().open()
    page, lease = someone.page, someone.lease()
    for key in ("1", "ArrowDown", "Control+Enter"):
        page.keyboard.press(key)
    someone.wait_new_task(lease)
    change_first_answer(page)
    someone.wait_tiers([[1], [0], [2], [3]])
    page.keyboard.press("4")
    page.keyboard.press("ArrowUp")
    someone.wait_saved("Draft saved")
    assert [list(t) for t in vote_of(store, lease).tiers] == [[1], [0], [2], [3]], "the answer stays as it is"

    page.evaluate("localStorage.clear()")
    someone.open()
    assert someone.lease() != lease
    change_first_answer(page)
    someone.wait_tiers([[1], [0], [3], [2]])
    page.get_by_role("button", name="Leave it unchanged").click()
    someone.wait_new_task(lease)
    change_first_answer(page)
    someone.wait_tiers([[1], [0], [2], [3]])
    page.keyboard.press("1")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Control+Enter")
    someone.wait_saved()
    assert [list(t) for t in vote_of(store, lease).tiers] == [[0], [1], [2], [3]]
    assert someone.errors == []


def test_shortcuts_can_be_switched_off_and_help_is_there(visit: Make) -> None:
    someone = visit().open()
    page = someone.page
    page.keyboard.press("?")
    page.wait_for_selector("dialog[open] .keys")
    page.uncheck("dialog[open] input[type=checkbox]")
    page.keyboard.press("Escape")
    page.keyboard.press("3")
    page.keyboard.press("b")
    page.keyboard.press("s")
    assert page.query_selector("dialog[open]") is None
    assert not page.is_checked(".bad input")
    page.focus('.handle[data-slot="2"]')
    page.keyboard.press("ArrowUp")
    someone.wait_tiers([[0], [2], [1], [3]])


def drag(visit: Visit, slot: int, tier: int, part: float) -> None:
    """Take a chip by mouse to a height inside a tier (0 its top edge, 1 its bottom)."""
    start = visit.page.locator(f'.handle[data-slot="{slot}"]').bounding_box()
    goal = visit.page.locator(".tier").nth(tier).bounding_box()
    assert start is not None
    assert goal is not None
    visit.page.mouse.move(start["x"] + 40, start["y"] + start["height"] / 2)
    visit.page.mouse.down()
    visit.page.mouse.move(start["x"] + 45, start["y"] + start["height"] / 2 + 12, steps=2)
    visit.page.mouse.move(goal["x"] + 60, goal["y"] + goal["height"] * part, steps=6)


def test_drag_by_mouse_between_onto_and_given_up(visit: Make) -> None:
    someone = visit().open()
    drag(someone, 3, 0, 0.1)
    someone.page.mouse.up()
    someone.wait_tiers([[3], [0], [1], [2]])
    drag(someone, 2, 1, 0.5)
    someone.page.mouse.up()
    someone.wait_tiers([[3], [0, 2], [1]])
    drag(someone, 1, 0, 0.1)
    someone.page.keyboard.press("Escape")
    someone.page.mouse.up()
    someone.wait_tiers([[3], [0, 2], [1]])
    drag(someone, 0, 2, 0.95)
    someone.page.mouse.up()
    someone.wait_tiers([[3], [2], [1], [0]])
    someone.page.click('[aria-label="Move response A up"] >> nth=0')
    someone.wait_tiers([[3], [2], [0], [1]])
    assert someone.errors == []


def test_touch_on_a_small_screen(visit: Make) -> None:
    someone = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True).open()
    page = someone.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".side").scroll_into_view_if_needed()
    start = page.locator('.handle[data-slot="3"]').bounding_box()
    goal = page.locator(".tier").nth(0).bounding_box()
    assert start is not None
    assert goal is not None
    touch = someone.context.new_cdp_session(page)

    def send(kind: str, y: float) -> None:
        points = [] if kind == "touchEnd" else [{"x": start["x"] + 30, "y": y}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    send("touchStart", start["y"] + 15)
    for step in range(1, 9):
        send("touchMove", start["y"] + 15 + (goal["y"] + 3 - start["y"] - 15) * step / 8)
    send("touchEnd", 0)
    someone.wait_tiers([[3], [0], [1], [2]])
    small = page.eval_on_selector_all(
        ".rlhf button, .rlhf select, .rlhf summary, .rlhf label.step, .rlhf label.choice, .rlhf label.flag",
        "nodes => nodes.filter(n => n.offsetParent && (b => b.width < 24 || b.height < 24)(n.getBoundingClientRect()))"
        ".map(n => n.outerHTML.slice(0, 120))",
    )
    assert small == []
    page.click(".button.help")
    box = page.locator("dialog[open]").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390


def test_what_decides_and_what_became_of_it_are_in_sight(visit: Make) -> None:
    for options in ({"viewport": {"width": 1280, "height": 800}}, {"viewport": {"width": 390, "height": 844}}):
        someone = visit(**options).open()
        page, lease = someone.page, someone.lease()
        wide = options["viewport"]["width"] > 1000
        if wide:
            expect(page.locator(".submit")).to_be_in_viewport(ratio=1)
            expect(page.locator(".undo")).to_be_in_viewport(ratio=1)
        page.click('.card[data-slot="1"] [aria-label="Move response B up"]')
        someone.wait_saved("Draft saved")
        expect(page.locator(".status")).to_be_in_viewport(ratio=1)
        page.click(".submit")
        someone.wait_new_task(lease)
        someone.wait_saved()
        assert page.evaluate("window.scrollY") == 0
        expect(page.locator(".status")).to_be_in_viewport(ratio=1)
        # The bar at the foot of a small screen hides nothing that could not be scrolled into sight.
        page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        page.click(".undo", trial=True)
        # Whoever works by keyboard goes on from the new task, not from the head of the page.
        assert page.evaluate("document.activeElement.id") == "rlhf-prompt-title"
        assert someone.errors == []


def test_untouched_order_asks_once_then_ratings_flags_and_a_correction(site: Site, visit: Make) -> None:
    _, store = site
    someone = visit().open()
    page = someone.page
    lease = someone.lease()
    page.click(".submit")
    page.click("dialog[open] .dialog-buttons button:not(.primary)")
    with store.read() as session:
        assert session.scalar(select(Judgment.id).where(Judgment.lease_id == lease)) is None
    page.click(".submit")
    page.click("dialog[open] .primary")
    someone.wait_saved()
    someone.wait_new_task(lease)
    assert [list(t) for t in vote_of(store, lease).tiers] == [[0], [1], [2], [3]]

    lease = someone.lease()
    page.click('.card[data-slot="1"] [aria-label="Move response B up"]')
    page.click('.card[data-slot="1"] label.step:has([aria-label="Helpful: 6"])')
    page.click('.card[data-slot="1"] label.step:has([aria-label="Honest: 2"])')
    page.click('.card[data-slot="1"] label.step:has([aria-label="Honest: 2"])')
    page.click('.card[data-slot="2"] summary')
    page.click('.card[data-slot="2"] label.flag:has-text("Personal data")')
    page.click('.side label.step:has([aria-label="Clearly"])')
    page.click(".side summary")
    page.click('.side label.flag:has-text("Harmful")')
    page.click('.card[data-slot="0"] .edit-open')
    page.fill('.card[data-slot="0"] textarea', "A much better answer.")
    someone.wait_saved("Draft saved")
    page.click(".submit")
    someone.wait_new_task(lease)
    vote = vote_of(store, lease)
    assert [list(t) for t in vote.tiers] == [[1], [0], [2], [3]]
    assert vote.ratings == {1: {"helpful": 6}}
    assert set(vote.flags) == {(2, "pii"), (None, "harmful")}
    assert vote.strength == 2
    assert vote.edits == {0: "A much better answer."}
    with store.read() as session:
        digests = set(session.scalars(select(Judgment.ui_sha256).where(Judgment.lease_id == lease)))
    assert digests == {page_digest()}
    with store.read() as session:
        snapshot = read_snapshot(session, "helpline")
    assert any(d.messages[-1].content == "A much better answer." for d in demonstrations(snapshot))
    assert any(r.chosen == "A much better answer." for r in preference_rows(snapshot))
    assert someone.errors == []


def test_skip_with_reason_then_change_an_answer_from_the_list(site: Site, visit: Make) -> None:
    _, store = site
    someone = visit().open()
    page = someone.page
    skipped = someone.lease()
    page.keyboard.press("s")
    page.click("dialog[open] label:has-text('I do not read this language')")
    page.click("dialog[open] .primary")
    someone.wait_new_task(skipped)
    with store.read() as session:
        lease = session.scalars(select(Lease).where(Lease.id == skipped)).one()
    assert (lease.state, lease.skip_reason) == ("skipped", "language")

    answered = someone.lease()
    page.keyboard.press("4")
    page.keyboard.press("ArrowUp")
    page.click(".submit")
    someone.wait_new_task(answered)
    held = someone.lease()
    page.get_by_role("tab", name="My answers").click()
    page.click(".answers button")
    page.wait_for_selector(".notice")
    assert someone.lease() == answered
    someone.wait_tiers([[0], [1], [3], [2]])
    page.focus('.handle[data-slot="3"]')
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Control+Enter")
    someone.wait_saved()
    assert someone.lease() == held
    assert [list(t) for t in vote_of(store, answered).tiers] == [[0], [3], [1], [2]]
    page.get_by_role("tab", name="Guidelines").click()
    page.wait_for_selector(".reading-page .badge:has-text('Version 1')")
    assert someone.errors == []


def test_three_languages_follow_the_account(site: Site, visit: Make) -> None:
    _, store = site
    someone = visit().open()
    page = someone.page
    words = {"da": ("da", "Indsend", "Din rangering"), "zh": ("zh-Hans", "提交", "您的排序")}
    for locale, (lang, submit, title) in words.items():
        page.select_option(".picker.language select", locale)
        page.wait_for_url(f"**/{locale}/")
        page.wait_for_selector(".ranking")
        assert page.get_attribute("html", "lang") == lang
        assert page.inner_text(".submit") == submit
        assert page.inner_text("#rlhf-side-title") == title
        leftovers = page.evaluate(
            "document.body.innerText.match(/\\b(Submit|Skip|Your ranking|[a-z]+\\.[a-z]+\\.[a-z]+)\\b/g)"
        )
        assert leftovers is None
    assert queue.progress(store, "helpline", someone.annotator_id).mine_total == 0
    page.goto(someone.server.url)
    page.wait_for_url("**/zh/")
    login = someone.server.client().get("/login", headers={"Accept-Language": "da-DK,da;q=0.9,en;q=0.5"})
    assert "Adgangskode" in login.text


def test_a_vote_that_could_not_be_sent_is_kept_and_sent_later(site: Site, visit: Make) -> None:
    _, store = site
    someone = visit().open()
    page = someone.page
    lease = someone.lease()
    someone.context.route("**/api/submit", lambda route: route.abort())
    page.keyboard.press("2")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Control+Enter")
    someone.wait_saved("Not saved")
    assert someone.lease() == lease
    kept = page.evaluate("JSON.parse(localStorage.getItem(Object.keys(localStorage).find(k => k.includes('outbox'))))")
    assert json.loads(json.dumps(kept))[0]["body"]["lease"] == lease
    page.close(run_before_unload=False)
    with store.read() as session:
        assert session.scalar(select(Judgment.id).where(Judgment.lease_id == lease)) is None
    someone.context.unroute("**/api/submit")
    page = someone.page = someone.context.new_page()
    someone.open()
    someone.wait_saved()
    with store.read() as session:
        rows = session.scalars(select(Judgment).where(Judgment.lease_id == lease)).all()
    assert len(rows) == 1
    assert [list(t) for t in vote_of(store, lease).tiers] == [[1], [0], [2], [3]]
    assert page.evaluate("Object.keys(localStorage).filter(k => k.includes('outbox')).length") == 0
