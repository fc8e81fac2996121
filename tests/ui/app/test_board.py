"""The board in a real browser: pictures are drawn and follow a live run; hostile text and strangers get nothing."""

from __future__ import annotations

import fcntl
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route

from preference_ui.app.address import Address, public_address
from preference_ui.app.board import main, render
from preference_ui.app.board import site as board_site
from preference_ui.app.board.page import Board
from preference_ui.app.board.site import BoardSite
from preference_ui.errors import ConfigError
from rlhf.telemetry.runs import RunView

OWNED = "document.title='OWNED';window.owned=1"
EVIL = "http://evil.test:9"
ATTACK = (
    f"<script>{OWNED}</script><img src=x onerror=\"{OWNED}\"><svg onload=\"{OWNED}\"> ${{{OWNED}}} {{{{{OWNED}}}}} "
    f"`${{{OWNED}}}` <iframe srcdoc='<script>parent.{OWNED}</script>'></iframe> ![p]({EVIL}/p.png) "
    f"<img src={EVIL}/q.png> </div></div></article><h1 id=escaped>out</h1> safe\u202etxt.exe \u001b[31m \\u003cscript>"
)  # fmt: skip
FAILED_IMAGE = "new Promise(failed => { const own = new Image(); own.onerror = () => failed(); own.src = 'data:,' })"
"""Has failed when those of an attack that came before have."""
HOSTILE_RUN = "x<img src=x onerror=window.owned=1>"


def record(step: int, **more: Any) -> dict[str, Any]:
    return {"time": 1000.0 + 2 * step, "stage": "ppo", "step": step, "score_mean": 0.1 * step, "score_std": 0.2,
            "kl": 0.05 * step, "entropy": 1.0, "value_loss": 1 / (step + 1), "response_tokens_mean": 20.0,
            "seconds.act": 1.0, "seconds.learn": 2.0, **more}  # fmt: skip


def write_run(path: Path, steps: int, learning_rate: float, **more: Any) -> Path:
    (path / "logs").mkdir(parents=True)
    config = {"num_steps": 40, "optim": {"learning_rate": learning_rate}, "run_dir": str(path),
              "batch": {"prompts_per_step": 4}, **more}  # fmt: skip
    (path / "config.json").write_text(json.dumps({"stage": "ppo", "started": "2026-01-01", "config": config}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(record(s)) + "\n" for s in range(steps)))
    rows = [{"step": s, "prompt": f"question {s}", "response": f"answer {s}", "score": 0.5} for s in range(3)]
    (path / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / ".lock").touch()
    return path


@dataclass
class Running:
    """A board in a process of its own."""

    root: Path
    link: str
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        return self.link.split("/login")[0]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "calm", 20, 1e-4)
    write_run(root / "team" / "fast", 10, 3e-4)
    hostile = write_run(root / HOSTILE_RUN, 3, 1e-4, note=ATTACK)
    with (hostile / "rollouts.jsonl").open("a") as handle:
        handle.write(json.dumps({"step": 9, "prompt": ATTACK, "response": ATTACK, "score": 1.0, "key": ATTACK}) + "\n")
    line = f"2026-01-01T00:00:00.000Z ERROR driver-0 rlhf.x: {ATTACK}\n"
    (hostile / "logs" / "driver-0.log").write_text(line)
    secret = root.parent / "secret.txt"
    secret.write_text("not for the board")
    (root / "outside").symlink_to(root.parent)
    command = [sys.executable, "-m", "preference_ui.app.board", "--runs", str(root), "--port", "0", "--refresh", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        told = process.stdout.readline() if process.stdout else ""
        found = re.search(r"http://\S+[^;\s]", told)
        assert found, told
        running = Running(root, found.group(0), process)
        for _ in range(600):
            try:
                if httpx.get(f"{running.url}/healthz", timeout=2).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield running
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def page(board: Running, browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(board.link)
    page.wait_for_selector(".runs a")
    yield page
    context.close()


def test_a_port_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--runs", str(tmp_path), "--port", "99999"]) == 2
    assert "--port 99999 is no port" in capsys.readouterr().err


def test_runs_are_listed_and_pictures_follow_a_live_run(board: Running, page: Page) -> None:
    text = page.inner_text(".runs")
    assert "calm" in text and "team/fast" in text and "20 of 40" in text and "score 1.90" in text
    page.get_by_role("link", name="team/fast").click()
    page.wait_for_selector(".plots svg")
    assert page.locator(".plots figure").count() >= 6
    assert "10 of 40" in page.inner_text(".run-head") and "stopped" in page.inner_text(".run-head")
    run = board.root / "team" / "fast"
    with (run / ".lock").open("r+") as lock, (run / "metrics.jsonl").open("a") as handle:
        fcntl.flock(lock, fcntl.LOCK_EX)
        handle.write(json.dumps(record(10, score_mean=77.0)) + "\n")
        handle.flush()
        page.wait_for_function("document.querySelector('.run-head')?.textContent.includes('77')", timeout=20_000)
        assert "running" in page.inner_text(".run-head")
    page.get_by_role("tab", name="Samples").click()
    page.wait_for_selector(".sample")
    assert "answer 2" in page.locator(".sample").first.inner_text()


def test_a_late_first_answer_leaves_the_reader_where_they_went(board: Running, browser: Browser) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(60_000)
    held: list[Route] = []
    page.route("**/queue/join*", lambda route: route.continue_() if held else held.append(route))
    page.goto(board.link)
    page.wait_for_selector(".runs a")  # the timer's answer overtakes the held one
    page.get_by_role("tab", name="Compare").click()
    page.get_by_label("runs (at most 6)").click()
    held[0].continue_()
    page.get_by_role("option", name="calm", exact=True).click()
    assert page.get_by_role("tab", name="Compare").get_attribute("aria-selected") == "true"
    context.close()


def test_runs_are_compared(page: Page) -> None:
    page.get_by_role("tab", name="Compare").click()
    box = page.get_by_label("runs (at most 6)")
    for name in ("calm", "team/fast"):
        box.click()
        page.get_by_role("option", name=name, exact=True).click()
    page.wait_for_function("document.querySelectorAll('.runs th[scope=row]').length > 0")
    assert page.locator(".plots svg text", has_text="team/fast").count() >= 1
    rows = [t.split("\t") for t in page.locator(".runs:has(th[scope=row])").inner_text().splitlines()]
    assert ["optim.learning_rate", "0.0001", "0.0003"] in rows
    assert not any(row[0] == "num_steps" for row in rows), "equal keys are left out"


def test_hostile_text_does_nothing(board: Running, browser: Browser) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 800})
    page = context.new_page()
    page.set_default_timeout(60_000)
    requests: list[str] = []
    dialogs: list[str] = []
    page.on("request", lambda r: requests.append(r.url))
    page.on("dialog", lambda d: (dialogs.append(d.message), d.accept()))
    page.goto(board.link)
    page.wait_for_selector(".runs a")
    page.locator(".runs a", has_text="onerror").click()
    page.wait_for_selector(".plots svg")
    for tab, place in (("Samples", ".sample"), ("Events", ".events"), ("Config", ".board-scroll"), ("Metrics", "")):
        page.get_by_role("tab", name=tab).click()
        shown = page.locator(place, has_text="<h1 id=escaped>") if place else page.locator(".plots svg")
        shown.filter(visible=True).first.wait_for()
        page.evaluate(FAILED_IMAGE)
    page.get_by_role("tab", name="Samples").click()
    text = page.locator(".sample").first.inner_text()
    assert "<script>" in text and "U+202E" in text, "it is shown as it was written"
    assert page.evaluate("window.owned") is None and page.title() != "OWNED" and not dialogs
    assert page.locator("#escaped").count() == 0
    assert not [r for r in requests if not r.startswith((board.url, "data:", "blob:"))]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "a phone need not scroll sideways"
    context.close()


def test_strangers_read_nothing(board: Running) -> None:
    with httpx.Client(base_url=board.url, timeout=20) as client:
        assert client.get("/board/", headers={"accept": "text/html"}).headers["location"] == "/login"
        assert client.get("/board/config").status_code == 401
        assert client.get("/login", params={"token": "wrong"}).status_code == 403
        assert "link" in client.get("/login").text
        assert client.get("/board/", headers={"host": "evil.test"}).status_code == 421
    token = board.link.split("token=")[1]
    with httpx.Client(base_url=board.url, timeout=20) as client:
        answer = client.get("/login", params={"token": token})
        assert answer.status_code == 303 and answer.headers["location"] == "/board/"
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=lax" in cookie
        page = client.get("/board/")
        assert page.status_code == 200 and "frame-ancestors 'none'" in page.headers["content-security-policy"]
        target = board.root.parent / "secret.txt"
        for path in (f"/board/gradio_api/file={target}", f"/board/file={target}", "/board/gradio_api/upload",
                     "/static/board/../../page.py", "/static/board/%2e%2e/page.py"):  # fmt: skip
            assert client.get(path).status_code in (404, 405), path
        assert client.post("/board/gradio_api/queue/join", json={}, headers={"origin": EVIL}).status_code == 403
        assert client.request("DELETE", "/board/").status_code in (403, 404, 405)


def test_names_from_the_browser_are_never_paths(board: Running) -> None:
    site = BoardSite(board.root.resolve(), Address("http://127.0.0.1:1"), "t" * 32)
    assert set(site.names()) == {"calm", "team/fast", HOSTILE_RUN}
    for name in ("../", "/etc", "calm/../../", "outside", "outside/x", "", None, "nope"):
        assert site.view(name) is None


def test_equal_configs_and_empty_pages() -> None:
    assert "No runs here yet" in render.runs_table([])
    assert "Choose two" in render.comparison([])
    empty = RunView(Path("/nonexistent"))
    assert "equal" in render.config_difference([("a", empty), ("b", empty)])
    assert "No figures yet" in render.run_plots(empty)


def test_where_a_server_may_listen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = partial(public_address, what="the token", remedy="use a tunnel")
    assert ask("127.0.0.1", 80, None, insecure=False).url == "http://127.0.0.1:80"
    assert ask("::1", 80, None, insecure=False).url == "http://[::1]:80"
    assert ask("127.0.0.1", 80, None, scheme="https", insecure=False).is_secure
    assert ask("0.0.0.0", 80, "https://b.example", insecure=False).url == "https://b.example"
    assert ask("10.0.0.1", 80, None, insecure=True).hosts == {"10.0.0.1:80"}
    for host, given in (("10.0.0.1", None), ("127.0.0.1", "http://b.example")):
        with pytest.raises(ConfigError, match="would send the token unencrypted: use a tunnel"):
            ask(host, 80, given, insecure=False)
    for host, given in (("0.0.0.0", None), ("127.0.0.1", "https://b.example/path"), ("127.0.0.1", "b.example")):
        with pytest.raises(ConfigError, match="--public-url"):
            ask(host, 80, given, insecure=True)
    assert main(["--runs", str(tmp_path / "nothing")]) == 2
    assert "not a directory" in capsys.readouterr().err


def test_viewers_share_one_walk_over_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick looks up every run; each look-up walked through all directories once."""
    for number in range(20):
        write_run(tmp_path / f"run{number}", 2, 1e-4)
    walks, now = [], [1000.0]
    walk = board_site.find_runs
    monkeypatch.setattr(board_site, "find_runs", lambda root: walks.append(root) or walk(root))
    monkeypatch.setattr(board_site, "monotonic", lambda: now[0])
    site = BoardSite(tmp_path.resolve(), Address("http://127.0.0.1:1"), "t" * 32)
    viewers = [Board(site) for _ in range(3)]
    for viewer in viewers:
        table, *_ = viewer.tick("run3", "")
        assert table.count("run1") >= 11
    assert len(walks) == 1
    write_run(tmp_path / "late", 2, 1e-4)
    now[0] += board_site.NAMES_SECONDS
    assert "late" in site.names() and site.view("late") is not None and len(walks) == 2
    (tmp_path / "run0").rename(tmp_path / "gone")
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    write_run(outside, 2, 1e-4)
    (tmp_path / "run0").symlink_to(outside)
    assert site.view("run0") is None, "what a name leads to is looked at every time"
