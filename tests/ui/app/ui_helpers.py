"""A real server process and a seeded store for the tests of the page."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page

from preference_ui import auth, people
from preference_ui.db import Store, open_store
from preference_ui.passwords import hash_password
from preference_ui.people import create_annotator
from preference_ui.projects import ItemSpec, ResponseSpec, add_items, create_project
from preference_ui.settings import Axis, ProjectSettings
from rlhf.data.schema import Message

CHROMIUM = Path("/usr/bin/chromium")
PASSWORD = "correct horse 1"
CHEAP_LOG_N = 4
START_SECONDS = 90

SETTINGS = ProjectSettings(
    overlap=50,
    axes=(Axis("helpful"), Axis("honest", 1, 5)),
    flags=("hallucination", "harmful", "pii"),
    max_skips=1000,
)
ANSWERS = (
    "Hold the **reset button** for ten seconds, then wait.\n\n```sh\nping 192.168.1.1\n```",
    "Buy a new one.",
    "Unplug it, wait $t = 30$ seconds, plug it in.\n\n| step | what |\n|---|---|\n| 1 | unplug |",
    "החזיקו את הכפתור עשר שניות.",
)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def seed(path: Path | str, settings: ProjectSettings = SETTINGS, num_items: int = 8) -> Store:
    """A store, at a path or a URL, with the project ``helpline``."""
    store = open_store(path)
    project = create_project(store, "helpline", guideline="# Rules\n\nBe *fair*.", settings=settings)
    add_items(
        store,
        project.id,
        [
            ItemSpec(
                prompt=(Message("system", "Be helpful."), Message("user", f"My router {number} is broken. 路由器坏了")),
                responses=tuple(
                    ResponseSpec(f"{text}\n\n({number})", run="runs/secret-model", step=7) for text in ANSWERS
                ),
            )
            for number in range(num_items)
        ],
    )
    return store


def token_for(store: Store, handle: str, role: str = "annotator") -> tuple[str, str]:
    """A fresh account with a session: its id and its token.

    Its password's hash is a cheap one, by parameters that stand in the row: what a dear one costs, and that it is
    dear, is tested with the store.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(people, "hash_password", partial(hash_password, log_n=CHEAP_LOG_N))
        person = create_annotator(store, handle, role=role, password=PASSWORD)
    return person.id, auth.login(store, handle, PASSWORD).token


@dataclass
class Server:
    """``rlhf annotate`` in a process of its own.

    Attributes:
        store_path: the SQLite file; the log stands beside it.
        store_url: the store, when it is not that file.
        options: further words for the command line.
        project: what people rank in.
    """

    store_path: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    store_url: str = ""
    options: tuple[str, ...] = ()
    project: str = "helpline"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def cookie(self) -> str:
        return f"rlhf_session_{self.port}"

    def start(self) -> None:
        """Start and wait until it answers."""
        log = self.store_path.with_suffix(".log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "preference_ui.app.serve", "--project", self.project,
             "--store", self.store_url or str(self.store_path), "--port", str(self.port), "--admin", "root",
             *self.options],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=os.environ | {"RLHF_ADMIN_PASSWORD": PASSWORD},
        )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended: {self.log()}")
            try:
                if httpx.get(f"{self.url}/healthz", timeout=2).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        self.kill()
        raise RuntimeError(f"the server did not answer within {START_SECONDS} s: {self.log()}")

    def log(self) -> str:
        """What it printed."""
        return self.store_path.with_suffix(".log").read_text(encoding="utf-8", errors="replace")[-4000:]

    def kill(self) -> None:
        """End it without any chance to clean up."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(20)
            self.process = None

    def client(self, token: str | None = None, origin: str | None = "self") -> httpx.Client:
        """An HTTP client that behaves like the page, or not."""
        headers = {} if origin is None else {"Origin": self.url if origin == "self" else origin}
        cookies = {self.cookie: token} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, cookies=cookies, timeout=30)


class Visit:
    """A person at a browser: page, account, and everything that went wrong on the page."""

    def __init__(self, context: BrowserContext, server: Server, annotator_id: str, token: str) -> None:
        self.context, self.server, self.annotator_id, self.token = context, server, annotator_id, token
        self.page: Page = context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.set_default_timeout(60_000)
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("dialog", lambda d: (self.errors.append(f"dialog {d.message}"), d.accept()))

    def open(self, locale: str = "en") -> Visit:
        self.page.goto(f"{self.server.url}/{locale}/")
        self.page.wait_for_selector(".ranking")
        return self

    def tiers(self) -> list[list[int]]:
        """The ranking on screen."""
        script = "rows => rows.map(r => [...r.querySelectorAll('.handle')].map(h => Number(h.dataset.slot)))"
        return self.page.eval_on_selector_all(".tier", script)

    def wait_tiers(self, wanted: list[list[int]]) -> None:
        """Until the ranking on screen is this one: a slow machine shows a move a moment later."""
        deadline = time.monotonic() + 20
        while (seen := self.tiers()) != wanted:
            if time.monotonic() > deadline:
                raise AssertionError(f"the ranking is {seen}, not {wanted}")
            time.sleep(0.05)

    def lease(self) -> str:
        """The task on screen."""
        return str(self.page.get_attribute(".ranking", "data-lease"))

    def wait_saved(self, words: str = "Answer saved") -> None:
        """Until the page says so, which it may only after the commit."""
        self.page.wait_for_function("w => document.querySelector('.status')?.textContent.includes(w)", arg=words)

    def wait_new_task(self, old: str) -> None:
        self.page.wait_for_function("o => document.querySelector('.ranking')?.dataset.lease !== o", arg=old)


AXE = Path(str(files("axe_playwright_python"))) / "axe.min.js"


def log_in(context: BrowserContext, server: Server, token: str) -> None:
    """What a login in another tab does to all of them."""
    context.add_cookies([{"name": server.cookie, "value": token, "url": server.url, "httpOnly": True}])


def change_first_answer(page: Page) -> None:
    """Opens an answer of one's own to change it."""
    page.get_by_role("tab", name="My answers").click()
    page.get_by_role("button", name="Change", exact=True).first.click()
    page.wait_for_selector(".ranking .notice")


def violations(page: Page) -> list[str]:
    """What axe-core finds on the page as it is now, of any severity, target sizes of WCAG 2.2 included."""
    # What is being fetched is shown faint, with its old content, until it is there.
    page.wait_for_function("!document.querySelector('.pending') && document.getAnimations().every(idle)".replace(
        "idle", "a => a.playState !== 'running' || a.effect.getTiming().iterations === Infinity"
    ))  # fmt: skip
    # Through the debugger, so that the page's own policy stays as it is.
    page.evaluate(AXE.read_text(encoding="utf-8") + "; undefined")
    options = "{resultTypes: ['violations'], rules: {'target-size': {enabled: true}}}"
    found = page.evaluate(f"axe.run(document, {options})")
    return [
        f"{v['impact']} {v['id']}: {n['html'][:150]} {n['failureSummary'][:200]}"
        for v in found["violations"]
        # Texts of models and people bring headings of their own, h4 and below; their order is their authors' affair.
        if not (v["id"] == "heading-order" and all(n["html"].startswith(("<h4", "<h5", "<h6")) for n in v["nodes"]))
        for n in v["nodes"]
    ]
