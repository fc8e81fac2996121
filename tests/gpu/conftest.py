"""Tests that need a GPU (make gpu-test); on other machines there is nothing to collect here."""

from __future__ import annotations

import pytest
import torch

from tests.support.tiny import tiny_base  # noqa: F401 - a fixture

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks all of them."""
    for item in items:
        item.add_marker(pytest.mark.gpu)
