"""The server dies in mid-task, tabs close on the way, two people work at once. Nothing is lost or doubled."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sqlalchemy import func, select

from preference_ui import queue
from preference_ui.backup import verify
from preference_ui.db import Store
from preference_ui.models import Judgment, Lease
from preference_ui.settings import ProjectSettings
from tests.ui.app.ui_helpers import Server, Visit, free_port, seed, token_for


def test_server_killed_in_mid_task_with_two_people_at_work(tmp_path: Path, visit: Callable[..., Visit]) -> None:
    path = tmp_path / "own.sqlite"
    store = seed(path, ProjectSettings(overlap=1), num_items=4)
    server = Server(path, free_port())
    server.start()
    try:
        ann, ben = (visit(where=(server, store), handle=name).open() for name in ("ann", "ben"))
        first = ann.lease()
        with store.read() as session:
            items = session.scalars(select(Lease.item_id).where(Lease.state == "active")).all()
        assert len(set(items)) == 2

        ann.page.keyboard.press("4")
        ann.page.keyboard.press("ArrowUp")
        ann.page.keyboard.press("n")
        ann.page.keyboard.type("half a thought")
        ann.wait_saved("Draft saved")
        ben.page.keyboard.press("2")
        ben.page.keyboard.press("=")
        kept = ben.lease()
        server.kill()

        # A page that stays open: it says "not saved", and delivers when the server is back.
        ben.page.keyboard.press("Control+Enter")
        ben.wait_saved("Not saved")
        assert ben.lease() == kept
        server.start()
        ben.wait_saved("Answer saved")
        ben.wait_new_task(kept)

        # A page that is loaded again: same login, same task, same draft.
        ann.page.reload()
        ann.page.wait_for_selector(".ranking")
        assert ann.lease() == first
        ann.wait_tiers([[0], [1], [3], [2]])
        assert ann.page.input_value(".note textarea") == "half a thought"
        ann.page.keyboard.press("Control+Enter")
        ann.wait_saved("Answer saved")

        with store.read() as session:
            counts = dict(session.execute(select(Judgment.lease_id, func.count()).group_by(Judgment.lease_id)).all())
        assert counts == {first: 1, kept: 1}
        assert verify(store).ok
        assert ann.errors == ben.errors == []
    finally:
        server.kill()


def test_a_tab_that_closes_on_the_way_neither_loses_nor_doubles_a_vote(site: tuple[Server, Store]) -> None:
    """The connection ends right after the request, fifty times; the copy that the page kept is sent again later."""
    server, store = site
    taken = 0
    for number in range(7):
        who, token = token_for(store, f"closer{number}")
        bodies = []
        with server.client(token) as later:
            while len(bodies) < 8 and (task := queue.claim(store, "helpline", who)) is not None:
                vote = {"tiers": [[slot] for slot in reversed(range(len(task.responses)))]}
                body = {"lease": task.lease_id, "revision": 1, "vote": vote, "next": False}
                _send_and_close(server, token, json.dumps(body))
                bodies.append(body)
                # A new task is held only after this one was answered or given back.
                queue.release(store, who, task.lease_id) if number % 2 else time.sleep(0.02)
                answer = later.post("/api/submit", json=body)
                assert answer.status_code == 200
                taken += answer.json()["saved"]["duplicate"]
        leases = [body["lease"] for body in bodies]
        with store.read() as session:
            stored = Counter(session.scalars(select(Judgment.lease_id).where(Judgment.lease_id.in_(leases))))
        assert stored == Counter(leases)
        assert len(bodies) == 8
    assert taken > 0, "no vote of a closed connection had arrived: the test looked at nothing"


def _send_and_close(server: Server, token: str, body: str) -> None:
    head = (
        f"POST /api/submit HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nOrigin: {server.url}\r\n"
        f"Cookie: {server.cookie}={token}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as wire:
        wire.sendall((head + body).encode())


def test_one_vote_from_many_connections_at_once_is_one_row(site: tuple[Server, Store]) -> None:
    server, store = site
    who, token = token_for(store, "doubleclick")
    task = queue.claim(store, "helpline", who)
    assert task is not None
    vote = {"tiers": [[slot] for slot in range(len(task.responses))]}
    body = {"lease": task.lease_id, "revision": 1, "vote": vote, "next": False}

    def post(_: int) -> tuple[int, str]:
        with server.client(token) as tab:
            reply = tab.post("/api/submit", json=body)
            return reply.status_code, reply.json()["saved"]["judgment"]

    with ThreadPoolExecutor(32) as pool:
        replies = set(pool.map(post, range(32)))
    assert len(replies) == 1
    assert replies.pop()[0] == 200
    with store.read() as session:
        count = session.scalar(select(func.count()).where(Judgment.lease_id == task.lease_id))
    assert count == 1
