"""The PostgreSQL server that the tests of the store and of the page share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.postgres import running_server, store_places


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a fresh server on a socket in a directory of its own."""
    with running_server() as url:
        yield url


@pytest.fixture(scope="session")
def new_postgres_url(postgres_server: str) -> Callable[[], str]:
    """Makes an empty place for a store, as often as called."""
    return store_places(postgres_server)
