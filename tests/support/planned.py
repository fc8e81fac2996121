"""``rlhf plan`` as a program reads it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.plan import main


def plan(capsys: pytest.CaptureFixture[str], *rest: str) -> tuple[int, dict[str, Any]]:
    """The exit code and what ``--json`` prints."""
    code = main([*rest, "--json"])
    return code, json.loads(capsys.readouterr().out)
