"""One busy thing must not stop the others: a store that is being written, leads who wait for figures."""

from __future__ import annotations

import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from tests.ui.app.ui_helpers import Server, free_port, seed, token_for


def test_a_busy_store_stops_no_page(tmp_path: Path) -> None:
    """Sessions not used for a minute are noted as used again, if that can be done at once."""
    path = tmp_path / "p.sqlite"
    store = seed(path, num_items=2)
    _, token = token_for(store, "ann")
    server = Server(path, free_port())
    server.start()
    try:
        with server.client(token) as page, ThreadPoolExecutor(4) as pool:
            assert page.get("/en/").status_code == 200
            with sqlite3.connect(path, isolation_level=None) as other:
                other.execute("UPDATE auth_session SET last_seen = datetime('now', '-90 seconds')")
                stamp = other.execute("SELECT last_seen FROM auth_session").fetchall()
                other.execute("BEGIN IMMEDIATE")
                begun = time.monotonic()
                pages = [pool.submit(page.get, "/en/") for _ in range(3)]
                health = pool.submit(page.get, "/healthz")
                assert health.result().status_code == 200 and time.monotonic() - begun < 5
                assert [reply.result().status_code for reply in pages] == [200] * 3
                assert time.monotonic() - begun < 10, "the pages wait for no writer either"
                other.execute("ROLLBACK")
                assert other.execute("SELECT last_seen FROM auth_session").fetchall() == stamp
                assert page.get("/en/").status_code == 200
                assert other.execute("SELECT last_seen FROM auth_session").fetchall() != stamp
    finally:
        server.kill()


def test_a_server_that_nobody_asks_costs_next_to_nothing(tmp_path: Path) -> None:
    """In processor time, which a busy machine does not lengthen much: six pages are mounted."""
    path = tmp_path / "p.sqlite"
    seed(path, num_items=2)
    server = Server(path, free_port())
    server.start()
    try:
        assert server.process is not None
        process = psutil.Process(server.process.pid)
        time.sleep(3)  # what a start leaves to be done
        before, begun = sum(process.cpu_times()[:2]), time.monotonic()
        time.sleep(5)
        share = (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - begun)
        assert share < 0.04, f"{share:.1%} of a core"
    finally:
        server.kill()
