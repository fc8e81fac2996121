"""Fixtures that every kind of test may use."""

from __future__ import annotations

import os
from functools import cache

# Ray reads it when it is first imported, by whichever test file comes first
os.environ.setdefault("RAY_AUTH_MODE", "token")

from pathlib import Path
from typing import Any

import pytest

ORDER = ("ray", "e2e", "cluster")
"""Folders whose tests start clusters: they take longest and come first, in this order."""
SHARED = "actor_pool"
"""The fixture whose users stay together in one process: the actors behind it serve one run after the other."""


def _part_of(nodeid: str) -> str:
    """The first folder below tests/."""
    return nodeid.removeprefix("tests/").partition("/")[0]


def _rank_of(item: pytest.Item) -> tuple[bool, int]:
    part = _part_of(item.nodeid)
    return not _shares(item), ORDER.index(part) if part in ORDER else len(ORDER)


def _shares(item: pytest.Item) -> bool:
    return _part_of(item.nodeid) == "ray" and item.path.name in _sharing_files(item.path.parent)


@cache
def _sharing_files(folder: Path) -> frozenset[str]:
    return frozenset(path.name for path in folder.glob("test_*.py") if SHARED in path.read_text(encoding="utf-8"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first: tests on shared actors, then what starts nodes and runs of its own."""
    items.sort(key=_rank_of)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests on shared actors go to one process, all others file by file to whoever is free."""
    from xdist.scheduler import LoadScopeScheduling

    folder = Path(__file__).parent / "ray"

    class ByRuntime(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            shares = _part_of(nodeid) == "ray" and Path(file).name in _sharing_files(folder)
            return SHARED if shares else file

    return ByRuntime(config, log)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama of width 64 with a byte-level BPE of 300 tokens; bos, eos and pad differ."""
    from tests.support.tiny import build_model

    return build_model(tmp_path_factory.mktemp("tiny_model") / "base")
