"""Following a job: nothing twice, nothing lost when the connection breaks, exit codes as a shell knows them."""

from __future__ import annotations

import random

import pytest

from cluster.client import Attempt, resolve_address
from cluster.follow import PROGRESS, _Log, exit_code
from rlhf.errors import ConfigError


def test_a_log_that_is_opened_again_goes_on_where_it_was_left() -> None:
    text = "".join(f"line {i}\n" for i in range(50)) + "the end"
    for seed in range(20):
        rng, shown = random.Random(seed), []
        log = _Log(shown.append)
        for last in (rng.randrange(len(text)), rng.randrange(len(text)), len(text)):  # two broken connections
            log.reopen()
            at = 0
            while at < last:
                size = rng.randrange(1, 40)
                log.add(text[at : min(last, at + size)])
                at += size
        log.flush()
        assert shown == text.split("\n")


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("SUCCEEDED", 0, 0), ("SUCCEEDED", None, 0), ("FAILED", 5, 5), ("FAILED", None, 1), ("FAILED", -9, 137),
     ("STOPPED", None, 130)],
)  # fmt: skip
def test_exit_codes(status: str, code: int | None, expected: int) -> None:
    attempt = Attempt("x", "x", 1, status, "", "", 1.0, 2.0, code, {})
    assert exit_code(attempt) == expected and not attempt.live


@pytest.mark.parametrize(
    ("line", "is_progress"),
    [("SFT          3/10  4s · 9s left  loss 0.71", True), ("Reward model 1/3  24s", True), ("report: runs/x", False),
     ("│ rows 3/4  x", False), ("a line of a log that is about 3/4  of something", False)],
)  # fmt: skip
def test_progress_lines(line: str, is_progress: bool) -> None:
    assert bool(PROGRESS.match(line)) is is_progress


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert resolve_address(None) == "http://127.0.0.1:8265"
    assert resolve_address("head:8265") == "http://head:8265"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # a cluster to join, not a job server
    assert resolve_address(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "https://head")
    assert resolve_address(None) == "https://head"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://other:1")
    assert resolve_address(None) == "http://other:1" and resolve_address("http://typed:2") == "http://typed:2"
    with pytest.raises(ConfigError, match="dashboard"):
        resolve_address("ray://head:10001")
