"""Score functions of the tests."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def count_e(prompts: list[str], responses: list[str]) -> list[float]:
    """How often a response holds the letter e."""
    return [float(response.count("e")) for response in responses]


def told(prompts: list[str], responses: list[str], meta: list[dict[str, Any]]) -> list[float]:
    """The number that a response's row holds; where asked, writes down what it was told."""
    if note := os.environ.get("TOLD_META"):
        with Path(note).open("a", encoding="utf-8") as handle:
            for prompt, response, row in zip(prompts, responses, meta, strict=True):
                handle.write(json.dumps({"prompt": prompt, "response": response, "meta": row}) + "\n")
    return [float(row.pop("answer")) for row in meta]


def told_alone(prompts: list[str], responses: list[str], *, meta: list[dict[str, Any]]) -> list[float]:
    """The same, one at a time."""
    return told(prompts, responses, meta) if len(responses) == 1 else []


def older(prompts: list[str], responses: list[str], scale: float = 2.0) -> list[float]:
    """A third parameter of its own, which is not handed anything."""
    return [scale for _ in responses]


def needs_more(prompts: list[str], responses: list[str], rows: list[object]) -> list[float]:
    """A third parameter that nobody fills."""
    return [0.0 for _ in responses]


def needs_one(responses: list[str]) -> list[float]:
    """A parameter too few."""
    return [0.0 for _ in responses]


def nothing(prompts: list[str], responses: list[str]) -> list[float]:
    """The same score for everything: nothing to learn."""
    return [0.0 for _ in responses]


def one_missing(prompts: list[str], responses: list[str]) -> list[float]:
    """Forgets the last response."""
    return [0.0 for _ in responses[1:]]


def not_a_number(prompts: list[str], responses: list[str]) -> list[float]:
    """Fails to score the fourth response."""
    return [math.nan if index == 3 else 0.0 for index in range(len(responses))]


def kill_rollout_workers(prompts: list[str], responses: list[str]) -> list[float]:
    """Ends the processes whose ids a test has written down, as an operating system short of memory would."""
    for pid in Path(os.environ["PIDS_TO_KILL"]).read_text(encoding="utf-8").split():
        os.kill(int(pid), signal.SIGKILL)
    return [float(index % 2) for index in range(len(responses))]


def wise(prompts: list[str], responses: list[str]) -> list[object]:
    """Does what each response says: hang, exit, raise, or a score; a number of e by default."""
    return [_obey(response) for response in responses]


def _obey(response: str) -> object:
    word = response.partition(":")[0]
    if word == "hang":
        re.fullmatch(r"(a+)+b", "a" * 40)  # holds the interpreter lock for longer than anybody waits
    if word == "exit":
        os._exit(7)
    if word == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "raise":
        raise LookupError("no such answer")
    return SAID.get(word, float(response.count("e")))


SAID: dict[str, object] = {
    "nan": math.nan,
    "inf": -math.inf,
    "none": None,
    "text": "1",
    "bool": True,
    "list": [1.0],
    "huge": 10**400,
    "beyond": 1e39,
}


def too_many(prompts: list[str], responses: list[str]) -> list[float]:
    """One score too many."""
    return [0.0 for _ in [*responses, ""]]


def endless(prompts: list[str], responses: list[str]) -> Iterator[float]:
    """Never stops giving scores."""
    while True:
        yield 0.0


def no_list(prompts: list[str], responses: list[str]) -> float:
    """Forgets that there are many."""
    return 1.0


def only_alone(prompts: list[str], responses: list[str]) -> list[float]:
    """Scores one response and fails on several."""
    return [1.0] if len(responses) == 1 else []


def prints(prompts: list[str], responses: list[str]) -> list[float]:
    """Talks while it works, and asks."""
    print("talking")
    try:
        input()
    except EOFError:
        return [2.0 for _ in responses]
    return []


def asked_to_end(prompts: list[str], responses: list[str]) -> list[float]:
    """Gets SIGTERM in mid-call, as with its driver's whole tree; then how a fork of it ends after another."""
    os.kill(os.getpid(), signal.SIGTERM)
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    ended = float(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return [ended for _ in responses]


def own_pid(prompts: list[str], responses: list[str]) -> list[float]:
    """In which process it runs, and a child that sleeps."""
    child = subprocess.Popen(["sleep", "600"])
    return [float(os.getpid()), float(child.pid)][: len(responses)]


def hangs_when_told(prompts: list[str], responses: list[str]) -> list[float]:
    """Writes down in which process it runs, whole at once, and never comes back."""
    told = Path(os.environ["TOLD"])
    told.with_suffix(".part").write_text(str(os.getpid()))
    told.with_suffix(".part").rename(told)
    _obey("hang")
    return []


def hangs_on_the_longest(prompts: list[str], responses: list[str]) -> list[float]:
    """Never comes back from a batch, nor from the response that was the longest of it."""
    note = Path(os.environ["LONGEST"])
    if len(responses) > 1:
        note.write_text(max(responses, key=len), encoding="utf-8")
        _obey("hang")
    if note.read_text(encoding="utf-8") == responses[0]:
        _obey("hang")
    return [float(responses[0].count("e"))]
