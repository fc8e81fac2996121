"""Stores on both databases."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_helpers import Clock, MakeProject, item_spec

from preference_ui.db import Store, open_store
from preference_ui.projects import ProjectInfo, add_items, create_project
from preference_ui.settings import ProjectSettings


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new, empty store can be made, on each database in turn."""
    if request.param == "sqlite":
        return str(tmp_path / "votes.sqlite")
    return str(request.getfixturevalue("new_postgres_url")())


@pytest.fixture
def clock() -> Clock:
    """The test's clock."""
    return Clock()


@pytest.fixture
def store(store_url: str, clock: Clock, tmp_path: Path) -> Iterator[Store]:
    """An open, empty store with seeded permutations."""
    opened = open_store(store_url, clock=clock, rng=random.Random(7), files=tmp_path / "versions")
    yield opened
    opened.close()


@pytest.fixture
def make_project(store: Store) -> MakeProject:
    """Create a project with ``count`` items of ``num_responses`` responses."""

    def make(count: int, num_responses: int = 3, name: str = "helpline", **settings: object) -> ProjectInfo:
        project = create_project(store, name, guideline="Be fair.", settings=ProjectSettings(**settings))  # type: ignore[arg-type]
        add_items(store, project.id, [item_spec(i, num_responses) for i in range(count)])
        return project

    return make
