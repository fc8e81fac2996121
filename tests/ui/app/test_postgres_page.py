"""The page on PostgreSQL: a person ranks, the server is killed, and everything is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sqlalchemy import select

from preference_ui.backup import verify
from preference_ui.models import Judgment
from tests.ui.app.ui_helpers import Server, Visit, free_port, seed


def test_the_page_on_postgresql(
    new_postgres_url: Callable[[], str], tmp_path: Path, visit: Callable[..., Visit]
) -> None:
    url = new_postgres_url()
    store = seed(url, num_items=3)
    server = Server(tmp_path / "p.sqlite", free_port(), store_url=url)
    server.start()
    try:
        someone = visit(where=(server, store), handle="pia").open()
        page = someone.page
        first = someone.lease()
        page.keyboard.press("4")
        page.keyboard.press("ArrowUp")
        page.keyboard.press("Control+Enter")
        someone.wait_saved()
        second = someone.lease()
        page.keyboard.press("2")
        page.keyboard.press("=")
        someone.wait_saved("Draft saved")
        server.kill()
        server.start()
        page.reload()
        page.wait_for_selector(".ranking")
        assert someone.lease() == second
        someone.wait_tiers([[0, 1], [2], [3]])
        page.keyboard.press("Control+Enter")
        someone.wait_saved()
        with store.read() as session:
            stored = session.scalars(select(Judgment.lease_id).order_by(Judgment.created)).all()
        assert stored == [first, second]
        assert verify(store).ok
        assert someone.errors == []
    finally:
        server.kill()
        store.close()
