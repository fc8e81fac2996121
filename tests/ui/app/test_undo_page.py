"""The undo button: one press that counts, whatever becomes of its answer; and a reason when it cannot."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Route
from sqlalchemy import func, select

from preference_ui.db import Store
from preference_ui.events import Transaction
from preference_ui.models import DatasetVersion, Judgment, Lease
from preference_ui.projects import get_project
from tests.ui.app.ui_helpers import Server, Visit

Site = tuple[Server, Store]
Make = Callable[..., Visit]


def _vote(someone: Visit) -> str:
    lease = someone.lease()
    someone.page.focus('.handle[data-slot="1"]')
    someone.page.keyboard.press("ArrowUp")
    someone.page.keyboard.press("Control+Enter")
    someone.wait_new_task(lease)
    return lease


def _states(store: Store, *leases: str) -> list[str]:
    with store.read() as session:
        return [session.get_one(Lease, lease).state for lease in leases]


def test_a_lost_answer_to_undo_costs_no_second_vote(site: Site, visit: Make) -> None:
    _, store = site
    someone = visit().open()
    older, newer = _vote(someone), _vote(someone)

    def lose(route: Route) -> None:
        route.fetch()
        route.abort()

    someone.context.route("**/api/undo", lose)
    someone.page.click("button.undo")
    someone.page.wait_for_selector(".status[data-kind=error]")
    assert _states(store, older, newer) == ["done", "active"]
    someone.context.unroute("**/api/undo", lose)
    someone.page.click("button.undo")
    someone.page.wait_for_function("n => document.querySelector('.ranking')?.dataset.lease === n", arg=newer)
    assert _states(store, older, newer) == ["done", "active"]
    with store.read() as session:
        own = select(func.count()).where(Judgment.lease_id.in_([older, newer]), Judgment.retracted)
        assert session.scalar(own) == 1
    assert someone.errors == []


def test_undo_says_why_it_cannot(site: Site, visit: Make) -> None:
    _, store = site
    someone = visit().open()
    someone.page.click("button.undo")
    someone.wait_saved("nothing to undo")
    lease = _vote(someone)
    project = get_project(store, "helpline")

    def freeze(tx: Transaction) -> None:
        version = DatasetVersion(
            id="v", project_id=project.id, number=1, options_json="{}", code_sha256="", num_rows=1, num_judgments=1,
            sha256="", path="", head_seq=0, head_hash="", created=tx.now,
        )  # fmt: skip
        tx.session.add(version)
        tx.session.flush()
        tx.session.get_one(Lease, lease).frozen_in = "v"

    def thaw(tx: Transaction) -> None:
        tx.session.get_one(Lease, lease).frozen_in = None
        tx.session.flush()
        tx.session.delete(tx.session.get_one(DatasetVersion, "v"))

    store.transact(freeze)
    try:
        someone.page.click("button.undo")
        someone.wait_saved("frozen dataset")
    finally:
        # The store is shared with other tests.
        store.transact(thaw)
    assert _states(store, lease) == ["done"]
    assert someone.errors == []
