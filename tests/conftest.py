"""Fixtures that every kind of test may use."""

from __future__ import annotations

import os

# Ray reads it when it is first imported, by whichever test file comes first
os.environ.setdefault("RAY_AUTH_MODE", "token")

from pathlib import Path
from typing import Any

import pytest

CLUSTERS = {"cluster": "hosts", "e2e": "hosts", "ray": "actors"}
"""What starts clusters, by folder, and the process it runs in: such tests wait more than they compute."""
ALONE = {"test_doctor_nodes.py", "test_peft_zero3.py", "test_ray_metrics.py", "test_secrets.py"}
"""Files of tests/ray that share nothing with the others: taken at the end, by whoever is free."""


def _part_of(nodeid: str) -> str:
    """The first folder below tests/."""
    return nodeid.removeprefix("tests/").partition("/")[0]


def _process_of(nodeid: str) -> str | None:
    """The process that a test is bound to, if it is to one."""
    return None if nodeid.partition("::")[0].rpartition("/")[2] in ALONE else CLUSTERS.get(_part_of(nodeid))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is bound to a process comes first: it takes longest. What starts runtimes of its own comes last."""
    items.sort(key=lambda item: (_process_of(item.nodeid) is None, _part_of(item.nodeid) in CLUSTERS))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Two processes for what starts clusters, each with runtimes of its own; the third takes file by file."""
    from xdist.scheduler import LoadScopeScheduling

    class ByRuntime(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _process_of(nodeid) or nodeid.partition("::")[0]

    return ByRuntime(config, log)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama of width 64 with a byte-level BPE of 300 tokens; bos, eos and pad differ."""
    from tests.support.tiny import build_model

    return build_model(tmp_path_factory.mktemp("tiny_model") / "base")
