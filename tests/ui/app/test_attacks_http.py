"""Forged requests: every write is authorised by session and lease, and nothing that must stay hidden is told."""

from __future__ import annotations

import re
from itertools import count

import pytest
from sqlalchemy import func, select

from preference_ui import queue
from preference_ui.db import Store
from preference_ui.models import Event, Judgment
from preference_ui.projects import ItemSpec, ResponseSpec, add_items, get_project
from rlhf.data.schema import Message
from tests.ui.app.ui_helpers import PASSWORD, Server, token_for

Site = tuple[Server, Store]
_names = count(1)
WRITES = ("task", "submit", "skip", "undo", "recall", "draft", "renew", "settings")
READS = ("boot", "history", "guideline")


def name() -> str:
    return f"caller{next(_names)}"


def events(store: Store) -> int:
    with store.read() as session:
        return session.scalar(select(func.count()).select_from(Event)) or 0


def ballot(tiers: list[list[int]] | None = None, **more: object) -> dict[str, object]:
    return {"tiers": tiers or [[0], [1], [2], [3]], **more}


def test_writes_need_a_session_and_our_own_page(site: Site) -> None:
    server, store = site
    _, token = token_for(store, name())
    before = events(store)
    with server.client() as nobody, server.client("0" * 43) as guesser:
        for path in WRITES:
            assert nobody.post(f"/api/{path}", json={}).status_code == 401
            assert guesser.post(f"/api/{path}", json={}).status_code == 401
        for path in READS:
            assert nobody.get(f"/api/{path}").status_code == 401
    for origin in (None, "null", "https://evil.test", server.url + ".evil.test", "http://127.0.0.1:1"):
        with server.client(token, origin) as forger:
            for path in [f"/api/{p}" for p in WRITES] + ["/logout", "/login", "/en/gradio_api/queue/join"]:
                assert forger.post(path, json={}).status_code == 403, (origin, path)
    with server.client(token) as page:
        for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}):
            assert page.post("/api/task", json={}, headers=headers).status_code == 403
        assert page.post("/api/task", content="{}", headers={"Content-Type": "text/plain"}).status_code == 422
        assert page.get("/healthz", headers={"Host": "evil.test"}).status_code == 200
        assert page.get("/api/boot", headers={"Host": "evil.test"}).status_code == 421
    assert events(store) == before


def test_another_persons_task_is_out_of_reach(site: Site) -> None:
    server, store = site
    (owner, _), (_, thief_token) = token_for(store, name()), token_for(store, name())
    task = queue.claim(store, "helpline", owner)
    assert task is not None
    before = events(store)
    with server.client(thief_token) as thief:
        body = {"lease": task.lease_id, "revision": 1, "vote": ballot()}
        for path, extra in (
            ("submit", {}), ("skip", {"reason": "x"}), ("recall", {}), ("renew", {}), ("draft", {"draft": {"a": 1}}),
            ("undo", {}),
        ):  # fmt: skip
            reply = thief.post(f"/api/{path}", json=body | extra)
            assert (reply.status_code, reply.json()["error"]) == (409, "lease"), path
        unknown = thief.post("/api/submit", json=body | {"lease": "0" * 36})
        assert unknown.json()["detail"] == thief.post("/api/submit", json=body).json()["detail"]
    assert events(store) == before


def test_what_a_page_was_loaded_for_is_held_against_the_session(site: Site) -> None:
    server, store = site
    (owner, _), (visitor, token) = token_for(store, name()), token_for(store, name())
    before = events(store)
    with server.client(token) as page:
        for method, paths in (("POST", WRITES), ("GET", READS)):
            for path in paths:
                body = {"json": {}} if method == "POST" else {}
                reply = page.request(method, f"/api/{path}", headers={"X-Rlhf-Person": owner}, **body)
                assert (reply.status_code, reply.json()["error"]) == (409, "person"), path
        assert events(store) == before
        assert page.post("/api/task", json={}, headers={"X-Rlhf-Person": visitor}).status_code == 200


def test_pages_of_answers_that_cannot_be(site: Site) -> None:
    server, store = site
    _, token = token_for(store, name())
    with server.client(token) as page:
        assert page.get("/api/history?skip=7").json() == {"answers": [], "more": False}
        for skip in ("-1", "x", "1" * 40, "", "1.0", "\u0663"):
            assert page.get("/api/history", params={"skip": skip}).status_code == 422, skip


@pytest.mark.parametrize(
    "change",
    [
        {"vote": ballot([[0], [1], [2]])}, {"vote": ballot([[0], [0], [1], [2]])}, {"vote": ballot([[0, 1, 2, 9]])},
        {"vote": ballot([["0"], [1], [2], [3]])}, {"vote": ballot([[True], [0], [2], [3]])}, {"vote": {}},
        {"vote": ballot(strength=99)}, {"vote": ballot(all_bad="yes")}, {"vote": ballot(ratings={"0": {"secret": 1}})},
        {"vote": ballot(ratings={"0": {"helpful": 8}})}, {"vote": ballot(flags=[[0, "gold"]])}, {"revision": "1"},
        {"vote": ballot(edits={"7": "x"})}, {"vote": ballot(rationale="x\x00y")}, {"vote": ballot(active_ms=-1)},
        {"revision": True}, {"revision": 7}, {"lease": ["x"]}, {"lease": "x" * 300}, {"vote": [1]},
        {"vote": ballot(rationale="x" * 200_000)}, {"vote": ballot(tiers=5)}, {"vote": ballot(flags=[[0, ["pii"]]])},
    ],
)  # fmt: skip
def test_votes_that_do_not_fit_are_refused(site: Site, change: dict[str, object]) -> None:
    server, store = site
    who, token = token_for(store, name())
    task = queue.claim(store, "helpline", who)
    assert task is not None
    body = {"lease": task.lease_id, "revision": 1, "vote": ballot([[i] for i in range(len(task.responses))])}
    with server.client(token) as page:
        reply = page.post("/api/submit", json=body | change)
        assert reply.status_code in (409, 422), reply.text
    with store.read() as session:
        assert session.scalar(select(Judgment.id).where(Judgment.lease_id == task.lease_id)) is None


def test_bodies_that_are_no_requests(site: Site) -> None:
    server, store = site
    _, token = token_for(store, name())
    json_type = {"Content-Type": "application/json"}
    with server.client(token) as page:
        for content in (b"", b"[]", b"{", b'{"lease": NaN}', b"\xff\xfe", b"[" * 100_000, b'"x"'):
            assert page.post("/api/draft", content=content, headers=json_type).status_code == 422
        big = b'{"lease":"' + b"x" * (3 * 1024 * 1024) + b'"}'
        assert page.post("/api/draft", content=big, headers=json_type).status_code == 413
        chunks = (b"x" * 65_536 for _ in range(48))
        assert page.post("/api/draft", content=chunks, headers=json_type).status_code == 413
        assert page.get("/healthz").json() == {"status": "ok"}


def test_one_vote_sent_many_times_is_stored_once(site: Site) -> None:
    server, store = site
    who, token = token_for(store, name())
    task = queue.claim(store, "helpline", who)
    assert task is not None
    order = [[i] for i in range(len(task.responses))]
    body = {"lease": task.lease_id, "revision": 1, "vote": ballot(order), "next": False}
    with server.client(token) as page:
        replies = [page.post("/api/submit", json=body).json()["saved"] for _ in range(3)]
        assert [r["duplicate"] for r in replies] == [False, True, True]
        assert len({r["judgment"] for r in replies}) == 1
        other = page.post("/api/submit", json=body | {"vote": ballot(order[::-1])})
        assert (other.status_code, other.json()["error"]) == (409, "conflict")


def test_nothing_tells_which_items_are_gold_or_who_wrote_what(site: Site) -> None:
    server, store = site
    project = get_project(store, "helpline")
    texts = [f"gold answer {i}" for i in range(3)]
    spec = ItemSpec((Message("user", "gold?"),), tuple(ResponseSpec(t, run="runs/secret-model", step=7) for t in texts),
                    gold_tiers=((0,), (1, 2)), source="gold.jsonl")  # fmt: skip
    add_items(store, project.id, [spec])
    _, token = token_for(store, name())
    with server.client(token) as page:
        told = [page.post("/api/task", json={}).text]
        told += [page.get(f"/api/{path}").text for path in ("boot", "history", "guideline")]
        for locale in ("en", "da", "zh"):
            told += [page.get(f"/{locale}/").text, page.get(f"/{locale}/config").text]
    everything = "\n".join(told)
    assert len(everything) > 10_000
    for secret in ("secret-model", "gold_rate", "repeat_rate", "gold answer", "gold.jsonl", "overlap", "policy"):
        assert secret not in everything, secret
    config = told[-1]
    assert "Hold the" not in config
    assert "router" not in config


def test_annotators_do_not_reach_the_leads_pages(site: Site) -> None:
    server, store = site
    _, token = token_for(store, name())
    with server.client(token) as page, server.client() as nobody:
        for path in ("/lead/en/", "/lead/da/config", "/lead/zh/gradio_api/info"):
            assert page.get(path).status_code in (401, 403, 404)
            assert nobody.get(path).status_code in (401, 403, 404)
        for path in ("queue/join", "call/decide", "run/decide", "queue/data?session_hash=x"):
            reply = page.request("POST" if "data" not in path else "GET", f"/lead/en/gradio_api/{path}", json={
                "data": [], "fn_index": 0, "session_hash": "x", "event_data": None})  # fmt: skip
            assert reply.status_code in (401, 403, 404), path


PATHS = [
    "/gradio_api/file=/etc/passwd", "/en/gradio_api/file=/etc/passwd", "/en/gradio_api/file=../../../../etc/passwd",
    "/en/file=/etc/passwd", "/en/file/etc/passwd", "/en/gradio_api/file/..%2f..%2fetc/passwd", "/en/gradio_api/token",
    "/en/token", "/en/gradio_api/proxy=http://127.0.0.1:22", "/en/gradio_api/upload", "/en/gradio_api/info",
    "/en/gradio_api/api/info", "/en/gradio_api/call/vote", "/en/gradio_api/run/vote", "/en/gradio_api/component_server",
    "/en/monitoring/summary", "/en/gradio_api/monitoring/summary", "/static/../serve.py", "/static/%2e%2e/serve.py",
    "/static/..%2fserve.py", "/static//etc/passwd", "/static/....//serve.py", "/static/%252e%252e/serve.py",
    "/en/static/../../../../../../etc/passwd", "/en/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/en/assets/..%2f..%2f..%2froutes.py", "/en/svelte/..%2f..%2froutes.py", "/docs", "/openapi.json", "/redoc",
    "/en/docs", "/en/openapi.json", "/.git/config", "/preferences.sqlite", "/en/gradio_api/mcp/sse",
    "/en/gradio_api/stream/a/b/0/playlist.m3u8", "/en/gradio_api/deep_link", "/en/custom_component/x/../../etc/passwd",
    "/en/gradio_api/custom_component/a/client/component/..%2f..%2f..%2fetc/passwd", "/en/gradio_api/app_id",
    *(f"/{where}/{trick}etc/passwd" for where in ("static", "en/gradio_api/file=", "en/static", "lead/en/static")
      for trick in ("../" * 8, "..%2f" * 8, "%2e%2e%2f" * 8, "..%5c" * 8, "..;/" * 8, "./../" * 8,
                    "%c0%ae%c0%ae/" * 8)),
    "/static/login.html%00.css", "/static/vendor/../../site.py", "/static/page.css/../../serve.py",
]  # fmt: skip


def test_path_tricks_open_nothing(site: Site) -> None:
    server, store = site
    _, token = token_for(store, name())
    assert len(PATHS) >= 60
    with server.client(token) as page:
        for path in PATHS:
            reply = page.get(path)
            assert reply.status_code >= 400, (path, reply.status_code, reply.text[:80])
            assert "root:" not in reply.text
            assert "def " not in reply.text


def test_headers_of_every_kind_of_page(site: Site) -> None:
    server, store = site
    _, token = token_for(store, name())
    with server.client(token) as page:
        for path in ("/login", "/en/", "/en/config", "/api/boot", "/static/app.js", "/healthz", "/nowhere"):
            reply = page.get(path, headers={"Origin": "https://evil.test"})
            policy = reply.headers["content-security-policy"]
            assert "frame-ancestors 'none'" in policy
            assert "default-src" in policy
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert "referrer-policy" in reply.headers
            assert "access-control-allow-origin" not in reply.headers, path
            assert "server" not in reply.headers
        assert page.get("/api/boot").headers["cache-control"] == "no-store"
        assert page.options("/api/task", headers={"Origin": "https://evil.test",
                            "Access-Control-Request-Method": "POST"}).status_code >= 400  # fmt: skip
    with server.client() as nobody:
        strict = nobody.get("/login").headers["content-security-policy"]
        assert "unsafe" not in strict
        assert "default-src 'none'" in strict


def test_guessing_is_locked_out_and_logout_kills_the_session(site: Site) -> None:
    server, store = site
    handle = name()
    _, token = token_for(store, handle)
    with server.client() as guesser:
        codes = [
            guesser.post("/login", data={"handle": handle, "password": f"guess {i}"}).status_code for i in range(8)
        ]
        assert codes[:5] == [401] * 5
        assert codes[5:] == [429] * 3
        right = guesser.post("/login", data={"handle": handle, "password": PASSWORD})
        assert right.status_code == 429
        assert re.search(r"\d+ seconds", right.text)
        hostile = guesser.post("/login", data={"handle": '"><script>alert(1)</script>', "password": "x"})
        assert "<script>" not in hostile.text
    with server.client(token) as page:
        assert page.get("/api/boot").status_code == 200
        assert page.post("/logout").status_code == 303
        page.cookies.set(server.cookie, token)
        assert page.get("/api/boot").status_code == 401
        assert page.get("/en/", headers={"Accept": "text/html"}).headers["location"] == "/login"
