"""Waiting for nodes: it ends with the last host, and names those that are missing."""

from __future__ import annotations

import pytest

from cluster import joined
from rlhf.errors import ConfigError


def test_it_waits_for_the_last_host(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(joined, "POLL_SECONDS", 0.01)
    answers = iter([["one"], ["one"], ["one", "two"], ["one", "two", "three"], []])
    joined.wait_until_joined(["one", "two", "three"], lambda: next(answers), 20.0)
    assert capsys.readouterr().out.splitlines() == [f"{n} of 3 node(s) in the cluster" for n in (1, 2, 3)]
    assert next(answers) == []


def test_the_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined, "POLL_SECONDS", 0.01)
    with pytest.raises(ConfigError, match=r"2 of 4 nodes .* missing: two, four\. Its own log"):
        joined.wait_until_joined(["one", "two", "three.local", "four"], lambda: ["one.local", "three"], 0.05)
