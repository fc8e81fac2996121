"""People ask the policy themselves: answers come from a process of its own, and votes never wait for it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from preference_ui.db import Store
from preference_ui.errors import GenerationError
from preference_ui.live import LiveOptions, LivePolicy
from preference_ui.models import Item, Judgment, Lease, PolicyVersion, Prompt, Response
from tests.ui.app.ui_helpers import Server, Visit, free_port, seed, token_for

POLICY = "builtin:helpline_base"
QUESTION = "Where do I keep spare insulin?"


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Store]]:
    """A server with live generation switched on."""
    path = tmp_path_factory.mktemp("asking") / "p.sqlite"
    store = seed(path)
    server = Server(path, free_port(), options=("--generate", POLICY, "--max-response-tokens", "24"))
    server.start()
    yield server, store
    server.kill()


def live_items(store: Store) -> list[str]:
    with store.read() as session:
        query = select(Item.id).join(Prompt, Prompt.id == Item.prompt_id).where(Prompt.source.startswith("live:"))
        return list(session.scalars(query))


def loaded(server: Server) -> str:
    if server.process is None:
        raise AssertionError("the server is not running")
    return Path(f"/proc/{server.process.pid}/maps").read_text()


def test_a_person_asks_and_ranks_at_once(asking: tuple[Server, Store], visit: Callable[..., Visit]) -> None:
    server, store = asking
    someone = visit(where=asking).open()
    page = someone.page
    before = someone.lease()
    page.keyboard.press("3")
    page.keyboard.press("ArrowUp")
    someone.wait_saved("Draft saved")
    page.get_by_role("tab", name="Ask the model").click()
    page.get_by_label("Your question").fill(QUESTION)
    page.get_by_role("button", name="Get answers").click()

    # The policy is only now being loaded, which takes seconds. A vote comes in between and is stored at once.
    _, token = token_for(store, "voter")
    with server.client(token) as client:
        task = client.post("/api/task", json={}).json()["task"]
        body = {"lease": task["lease"], "revision": 1, "vote": {"tiers": [[0], [1], [2], [3]]}}
        assert client.post("/api/submit", json=body).status_code == 200
    assert live_items(store) == []

    someone.wait_new_task(before)
    page.wait_for_selector(".ranking")
    assert QUESTION in page.inner_text(".prompt")
    assert len(someone.tiers()) >= 2
    lease = someone.lease()
    page.keyboard.press("2")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Control+Enter")
    someone.wait_saved()
    # The task that was open before comes back, with its draft.
    someone.wait_new_task(lease)
    assert someone.lease() == before
    someone.wait_tiers([[0], [2], [1], [3]])
    with store.read() as session:
        assert session.scalar(select(Judgment.id).where(Judgment.lease_id == lease)) is not None
        item = session.scalars(select(Item).join(Lease, Lease.item_id == Item.id).where(Lease.id == lease)).one()
        origin = session.execute(
            select(PolicyVersion.run, PolicyVersion.sha256, Response.sampling_json)
            .join(Response, Response.policy_version_id == PolicyVersion.id)
            .where(Response.prompt_id == item.prompt_id)
        ).all()
    assert {(run, sha) for run, sha, _ in origin} == {(POLICY, "base")}
    settings = [json.loads(text) for _, _, text in origin]
    assert len({s["seed"] for s in settings}) == len(origin) >= 2
    assert all(s["max_response_tokens"] == 24 and s["temperature"] == 1.0 for s in settings)
    assert "libtorch" not in loaded(server)
    assert someone.errors == []


def test_who_goes_on_ranking_keeps_the_task_and_gets_the_answers_next(
    asking: tuple[Server, Store], visit: Callable[..., Visit]
) -> None:
    _, store = asking
    someone = visit(where=asking).open()
    page = someone.page
    before = someone.lease()
    page.get_by_role("tab", name="Ask the model").click()
    page.get_by_label("Your question").fill("Do lights left on cost much?")
    known = len(live_items(store))
    # At once: on a busy machine the answers may be there before a second click is.
    ask, back = page.get_by_role("button", name="Get answers"), page.get_by_role("tab").first
    page.evaluate("([ask, back]) => { ask.click(); back.click(); }", [ask.element_handle(), back.element_handle()])
    page.wait_for_selector(".ranking")
    page.wait_for_selector("text=they come next", timeout=180_000)
    assert len(live_items(store)) == known + 1
    with store.read() as session:
        assert session.get_one(Lease, before).state == "active"
    assert someone.lease() == before
    page.keyboard.press("2")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Control+Enter")
    someone.wait_new_task(before)
    assert "Do lights left on cost much?" in page.inner_text(".prompt")
    with store.read() as session:
        assert session.get_one(Lease, before).state == "done"
    assert someone.errors == []


def test_two_people_ask_at_once(asking: tuple[Server, Store], visit: Callable[..., Visit]) -> None:
    """Both get answers to their own question, one after the other; neither sees the other's."""
    questions = ("May I drink juice before running?", "When should I see the eye doctor?")
    people = [visit(where=asking).open() for _ in questions]
    before = [person.lease() for person in people]
    for person, question in zip(people, questions, strict=True):
        person.page.get_by_role("tab", name="Ask the model").click()
        person.page.get_by_label("Your question").fill(question)
    for person in people:
        person.page.get_by_role("button", name="Get answers").click(no_wait_after=True)
    for person, question, old in zip(people, questions, before, strict=True):
        person.wait_new_task(old)
        assert question in person.page.inner_text(".prompt")
        assert person.errors == []


def test_nothing_is_generated_unless_switched_on(site: tuple[Server, Store], asking: tuple[Server, Store]) -> None:
    for (server, store), is_on in ((site, False), (asking, True)):
        _, token = token_for(store, f"looker{is_on}")
        with server.client(token) as client, server.client() as nobody:
            assert (POLICY in client.get("/en/config").text) is False
            assert ("Ask the model" in client.get("/en/config").text) is is_on
            for caller in (client, nobody):
                reply = caller.post("/en/gradio_api/call/ask", json={"data": [QUESTION, 4]})
                assert reply.status_code in (401, 404)
            forged = {"data": [QUESTION, 4], "fn_index": 0, "session_hash": "x"}
            assert nobody.post("/en/gradio_api/queue/join", json=forged).status_code in (401, 403)


def test_a_policy_that_cannot_be_loaded_is_an_error_each_time() -> None:
    missing = LivePolicy(LiveOptions("runs/there-is-no-such-run"))
    for _ in range(2):
        with pytest.raises(GenerationError, match="ConfigError"):
            missing.item(QUESTION, 4, 7)
    missing.close()


def test_a_policy_that_died_or_refuses_leaves_the_next_question_alone() -> None:
    """One process is killed; the one that takes its place refuses a prompt, and goes on."""
    policy = LivePolicy(LiveOptions(POLICY, max_response_tokens=16))
    try:
        process = policy._running()
        os.kill(process.pid, signal.SIGKILL)
        process.wait(20)
        with pytest.raises(GenerationError, match="limit"):
            policy.item("word " * 5000, 4, 7)
        assert policy.item(QUESTION, 4, 7) == policy.item(QUESTION, 4, 7)
    finally:
        policy.close()
