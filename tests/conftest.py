"""Fixtures that every kind of test may use."""

from __future__ import annotations

import os

# Ray reads it when it is first imported, by whichever test file comes first
os.environ.setdefault("RAY_AUTH_MODE", "token")

from pathlib import Path
from typing import Any

import pytest

CLUSTERS = ("cluster", "e2e", "ray")
PATIENT = ("invariance", "methods", "plan_bytes", "ppo_resume", "trl_resume", "trl_stages")
"""Files of tests/ray without bounds in seconds: they may run beside the others."""


def _scope_of(nodeid: str) -> str:
    """Tests of one scope run in one process, one after the other."""
    path = nodeid.removeprefix("tests/").partition("::")[0]
    if path.partition("/")[0] not in CLUSTERS:
        return path
    return "patient" if any(word in path for word in PATIENT) else "clusters"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts clusters comes first, because it takes longest; the patient ones come last."""
    order = {"clusters": 0, "patient": 2}
    items.sort(key=lambda item: order.get(_scope_of(item.nodeid), 1))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For two processes: what starts clusters runs in one of them; the other takes file by file, then the patient."""
    from xdist.scheduler import LoadScopeScheduling

    class ClustersTogether(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope_of(nodeid)

    return ClustersTogether(config, log)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama of width 64 with a byte-level BPE of 300 tokens; bos, eos and pad differ."""
    from tests.support.tiny import build_model

    return build_model(tmp_path_factory.mktemp("tiny_model") / "base")
