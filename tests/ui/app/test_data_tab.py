"""A lead without a shell brings tasks in, freezes them and takes them away; others cannot, and nothing stays."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from playwright.sync_api import Route, expect
from sqlalchemy import func, select

from preference_ui import queue
from preference_ui.app.guard import MAX_UPLOAD_BYTES
from preference_ui.datasets import VERSION_FILES, version_lines
from preference_ui.db import Store
from preference_ui.hints import training_on
from preference_ui.items import find_items
from preference_ui.models import Event
from preference_ui.versions import freeze, get_version
from preference_ui.votes import Vote
from tests.ui.app.ui_helpers import Server, Visit, free_port, seed, token_for, violations

Place = tuple[Server, Store]
_names = count(1)
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("data")
    store = seed(folder / "p.sqlite", num_items=3)
    server = Server(folder / "p.sqlite", free_port())
    (folder / "tmp").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder / "tmp"))
        server.start()
    yield server, store
    server.kill()


def token(store: Store, role: str) -> str:
    return token_for(store, f"data{next(_names)}", role)[1]


def events(store: Store) -> int:
    with store.read() as session:
        return session.scalar(select(func.count()).select_from(Event)) or 0


def rank_one(store: Store) -> None:
    who, _ = token_for(store, f"data{next(_names)}")
    task = queue.claim(store, "helpline", who)
    if task is None:
        raise AssertionError("no task")
    queue.submit(store, who, task.lease_id, Vote(tiers=[[slot] for slot in range(len(task.responses))]))


def lines(*names: str, **more: object) -> bytes:
    rows = ({"prompt": name, "responses": [f"{name} one", f"{name} two"]} | more for name in names)
    return "\n".join(json.dumps(row) for row in rows).encode()


def leftovers(server: Server) -> list[Path]:
    """What lies in the server's own temporary directory."""
    folder = server.store_path.with_name("tmp")
    return [path for kind in ("upload", "export") for path in folder.glob(f"rlhf-{kind}-*")]


def test_only_admins_bring_tasks_in(place: Place) -> None:
    server, store = place
    before, found = events(store), find_items(store, "helpline").total
    data = lines("smuggled")
    digest = hashlib.sha256(data).hexdigest()
    paths = ("/api/data/preview?name=a.jsonl", f"/api/data/store?name=a.jsonl&sha256={digest}")
    with server.client() as nobody:
        assert [nobody.post(path, content=data).status_code for path in paths] == [401, 401]
        assert nobody.get("/api/data/progress").status_code == 401
    tokens = {role: token(store, role) for role in ("annotator", "reviewer", "admin")}
    logins = events(store) - before
    for role in ("annotator", "reviewer"):
        with server.client(tokens[role]) as page:
            for path in paths:
                reply = page.post(path, content=data)
                assert (reply.status_code, reply.json()) == (403, {"error": "role"}), (role, path)
            assert page.get("/api/data/progress").status_code == 403
    with server.client(tokens["admin"], origin="https://evil.test") as forger:
        assert [forger.post(path, content=data).status_code for path in paths] == [403, 403]
    with server.client(tokens["admin"]) as page:
        for path in paths:
            reply = page.post(path, content=data, headers={"X-Rlhf-Person": "somebody else"})
            assert (reply.status_code, reply.json()["error"]) == (409, "person")
        # Gradio's own way in stays shut for admins too.
        for where in ("/lead/en/gradio_api/upload", "/lead/en/upload", "/gradio_api/upload"):
            assert page.post(where, files={"files": ("a.jsonl", data)}).status_code == 404, where
    assert (events(store) - before - logins, find_items(store, "helpline").total) == (0, found)


def test_a_file_is_looked_at_and_then_stored_once(place: Place) -> None:
    server, store = place
    data = lines("sky", "sea", HOSTILE) + b"\n" + lines("shore", tiers=[[0], [1]])
    digest = hashlib.sha256(data).hexdigest()
    before = find_items(store, "helpline").total
    with server.client(token(store, "admin")) as page:
        seen = page.post("/api/data/preview?name=C:\\tasks\\mine.jsonl", content=data).json()
        assert {k: seen[k] for k in ("sha256", "records", "tasks", "gold", "rankings")} == {
            "sha256": digest, "records": 4, "tasks": 4, "gold": 0, "rankings": 1,
        }  # fmt: skip
        assert [task["prompt"][0]["plain"] for task in seen["first"]] == [
            "sky",
            "sea",
            "&lt;img src=x onerror=alert(1)&gt;",
        ]
        assert find_items(store, "helpline").total == before
        other = page.post(f"/api/data/store?name=mine.jsonl&sha256={digest}", content=data + b"\n")
        assert (other.status_code, other.json()) == (409, {"error": "changed"})
        assert page.post("/api/data/store?name=mine.jsonl", content=data).status_code == 409
        assert find_items(store, "helpline").total == before
        stored = page.post(f"/api/data/store?name=mine.jsonl&sha256={digest}", content=data)
        none_left = {"lines": [], "more": 0}
        assert stored.json() == {"new": 4, "known": 0, "rankings": 1, "left_out": none_left}
        again = page.post(f"/api/data/store?name=mine.jsonl&sha256={digest}", content=data)
        assert again.json() == {"new": 0, "known": 4, "rankings": 0, "left_out": none_left}
        assert page.get("/api/data/progress").json() == {"done": 0, "total": 0}
        wrong = page.post("/api/data/preview?name=wrong.jsonl", content=b"{\n" * 12 + lines("fine")).json()
        assert wrong["problems"]["lines"][0].startswith("wrong.jsonl:1: is not JSON")
        assert (len(wrong["problems"]["lines"]), wrong["problems"]["more"], wrong["tasks"]) == (10, 2, 1)
        for name in ("a.parquet", "a", "", "../../a.txt", "%00"):
            reply = page.post(f"/api/data/preview?name={name}", content=data)
            assert (reply.status_code, reply.json()["error"]) == (422, "data"), name
            assert "rlhf prefs import" in reply.json()["detail"]
    assert find_items(store, "helpline").total == before + 4
    assert leftovers(server) == []
    assert "Traceback" not in server.log()


def test_files_that_are_too_large_are_refused_with_a_way_out(place: Place) -> None:
    server, store = place
    large = b" " * (3 * 1024 * 1024)
    with server.client(token(store, "admin")) as page:
        assert page.post("/api/data/preview?name=a.jsonl", content=large + lines("large")).json()["tasks"] == 1
        assert page.post("/api/draft", content=large).status_code == 413, "other routes take what they took"
        for body in (
            b" " * (MAX_UPLOAD_BYTES + 1),
            (b" " * 1_048_576 for _ in range(MAX_UPLOAD_BYTES // 1_048_576 + 1)),
        ):
            reply = page.post("/api/data/preview?name=a.jsonl", content=body)
            assert (reply.status_code, reply.json()["error"]) == (413, "too_large")
            assert "32 MiB" in reply.json()["detail"] and "rlhf prefs import" in reply.json()["detail"]
    deadline = time.monotonic() + 20
    while leftovers(server) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert leftovers(server) == []


def test_who_may_take_versions_away(place: Place) -> None:
    server, store = place
    rank_one(store)
    version = freeze(store, "helpline")
    address = f"/api/data/versions/{version.number}"
    every = [f"{address}/{name}" for name in VERSION_FILES] + ["/api/data/judgments.jsonl"]
    with server.client() as nobody, server.client(token(store, "annotator")) as annotator:
        for path in every:
            reply = nobody.get(path)
            assert (reply.status_code, reply.headers["location"]) == (303, "/login?expired"), path
            reply = annotator.get(path)
            assert (reply.status_code, reply.json()) == (403, {"error": "role"}), path
    for role in ("reviewer", "admin"):
        with server.client(token(store, role)) as page:
            for name in VERSION_FILES:
                reply = page.get(f"{address}/{name}")
                assert reply.content == (version.path / name).read_bytes()
                assert reply.headers["content-disposition"] == (
                    f'attachment; filename="helpline-v{version.number}-{name}"'
                )
                assert reply.headers["cache-control"] == "private, no-store"
                assert reply.headers["x-content-type-options"] == "nosniff"
                assert "default-src 'none'" in reply.headers["content-security-policy"]
            now = page.get("/api/data/judgments.jsonl")
            assert now.headers["cache-control"] == "private, no-store"
            assert now.headers["content-disposition"].startswith('attachment; filename="helpline-judgments-')
            assert {"tiers", "rater"} <= set(json.loads(now.text.splitlines()[0]))
            for path in (
                f"{address}/README.md", f"{address}/..%2fmanifest.json", f"{address}/%2e%2e/manifest.json",
                f"{address}/manifest.json%00", f"{address}/", "/api/data/versions/999/manifest.json",
                "/api/data/versions/-1/manifest.json", "/api/data/versions/%D9%A1/manifest.json",
                "/api/data/versions/..%2f..%2f/manifest.json", f"/api/data/versions/{'9' * 30}/manifest.json",
                f"/lead/en/gradio_api/file={version.path}/manifest.json", f"/api/data{version.path}/manifest.json",
            ):  # fmt: skip
                assert page.get(path).status_code == 404, path
    (version.path / "preferences.jsonl").unlink()
    with server.client(token(store, "reviewer")) as page:
        again = page.get(f"{address}/preferences.jsonl")
        assert hashlib.sha256(again.content).hexdigest() == version.sha256
        assert again.headers["content-disposition"].startswith("attachment")
    assert leftovers(server) == []


def test_the_whole_way_in_the_page(place: Place, visit: Callable[..., Visit], tmp_path: Path) -> None:
    server, store = place
    good, bad = tmp_path / "harbour.jsonl", tmp_path / "torn.jsonl"
    good.write_bytes(lines("harbour", HOSTILE + " again") + b"\n" + lines("pier", gold_tiers=[[0], [1]]))
    bad.write_bytes(lines("fine") + b"\n" + lines("alone", responses=["one"]))
    lead = visit(where=place, role="admin", handle="data-boss")
    page = lead.page
    page.goto(f"{server.url}/lead/en/")
    page.wait_for_selector(".tile")
    page.get_by_role("tab", name="Data", exact=True).click()
    choice = page.get_by_label("File with tasks")
    choice.set_input_files(bad)
    page.wait_for_selector("text=torn.jsonl:2: has 1 responses; an item takes 2 to 9")
    assert page.get_by_role("button", name="Store the tasks").count() == 0
    choice.set_input_files(good)
    expect(page.locator(".upload .status")).to_have_text("Rows: 3 · tasks: 3 · gold: 1 · with a ranking: 0")
    assert HOSTILE in page.locator(".preview").inner_text()
    assert violations(page) == []
    before = find_items(store, "helpline").total
    # An import that takes longer than two seconds tells how far it is.
    held: list[Route] = []
    page.route("**/api/data/store?*", lambda route: held.append(route))
    page.route("**/api/data/progress", lambda route: route.fulfill(json={"done": 1, "total": 3}))
    page.get_by_role("button", name="Store the tasks (3)").click()
    page.wait_for_selector("text=1 of 3 tasks are stored")
    held.pop().continue_()
    page.wait_for_selector("text=Stored. New: 3 · already there: 0")
    assert find_items(store, "helpline").total == before + 3

    rank_one(store)
    freeze_it = page.get_by_role("button", name="Freeze", exact=True)
    page.get_by_label("ties dropped").check()
    freeze_it.click()
    page.wait_for_selector("text=is frozen:")
    newest = version_lines(store, "helpline")[0]
    assert (newest.actor, newest.ties, newest.votes, newest.has_edits) == ("data-boss", "drop", "soft", True)
    row = page.locator(".versions tbody tr").first
    expect(row.locator("th")).to_have_text(f"v{newest.number}")
    for words in ("data-boss", "ties dropped", "left out (0)", newest.sha256[:12]):
        expect(row).to_contain_text(words)
    train = page.get_by_label("Train on the newest version")
    expect(train).to_have_value(training_on(store, f"store:helpline@v{newest.number}"))
    lead.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy the line").click()
    page.wait_for_function("async line => await navigator.clipboard.readText() === line", arg=train.input_value())
    with page.expect_download() as download:
        page.get_by_role("link", name=f"Download preferences.jsonl of version {newest.number}").click()
    assert download.value.suggested_filename == f"helpline-v{newest.number}-preferences.jsonl"
    assert hashlib.sha256(Path(download.value.path()).read_bytes()).hexdigest() == newest.sha256
    freeze_it.click()
    page.wait_for_selector(f"text=Nothing is new since version {newest.number}")
    assert get_version(store, "helpline").number == newest.number
    assert violations(page) == []
    assert lead.errors == []

    # A reviewer reads and downloads; the server refuses to freeze, and offers no way in.
    reader = visit(where=place, role="reviewer", handle="data-reader")
    page = reader.page
    page.goto(f"{server.url}/lead/en/")
    page.wait_for_selector(".tile")
    page.get_by_role("tab", name="Data", exact=True).click()
    page.wait_for_selector("text=Only an admin can bring tasks in.")
    assert page.locator("input[type=file]").count() == 0
    page.locator(".versions tbody tr").first.wait_for()
    rank_one(store)
    page.get_by_role("button", name="Freeze", exact=True).click()
    page.wait_for_selector("text=Your role does not allow this")
    assert get_version(store, "helpline").number == newest.number
    assert reader.errors == []
