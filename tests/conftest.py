"""Fixtures that every kind of test may use."""

from __future__ import annotations

import os

# Ray reads it when it is first imported, by whichever test file comes first
os.environ.setdefault("RAY_AUTH_MODE", "token")

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama of width 64 with a byte-level BPE of 300 tokens; bos, eos and pad differ."""
    from tests.support.tiny import build_model

    return build_model(tmp_path_factory.mktemp("tiny_model") / "base")
