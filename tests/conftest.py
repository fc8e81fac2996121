"""Fixtures that every kind of test may use."""

from __future__ import annotations

import importlib
import os

# Ray reads it when it is first imported, by whichever test file comes first
os.environ.setdefault("RAY_AUTH_MODE", "token")

from pathlib import Path
from typing import Any

import pytest

CLUSTERS = {"cluster": "hosts", "e2e": "hosts", "ray": "actors", "runtime": "hosts"}
"""What starts clusters, by folder, and the process it runs in: such tests wait more than they compute."""


def pytest_configure() -> None:
    """A process that gets a share of the suite collects all of it, and imports lean what it then needs in any case."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        from rlhf.workers.lean import lean_imports

        with lean_imports():
            for worker in ("policy", "reward", "rollout", "sft"):
                importlib.import_module(f"rlhf.workers.{worker}")


def _part_of(nodeid: str) -> str:
    """The first folder below tests/."""
    return nodeid.removeprefix("tests/").partition("/")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is bound to a process comes first: it takes longest. What starts processes of its own comes last."""
    items.sort(key=lambda item: (_part_of(item.nodeid) not in CLUSTERS, _part_of(item.nodeid) == "processes"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Two processes for what shares clusters, each with runtimes of its own; all else file by file to who is free."""
    from xdist.scheduler import LoadScopeScheduling

    class ByRuntime(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return CLUSTERS.get(_part_of(nodeid), nodeid.partition("::")[0])

    return ByRuntime(config, log)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama of width 64 with a byte-level BPE of 300 tokens; bos, eos and pad differ."""
    from tests.support.tiny import build_model

    return build_model(tmp_path_factory.mktemp("tiny_model") / "base")
