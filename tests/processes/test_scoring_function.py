"""Functions that hang, crash, lie or forget: a typed error or a counted drop, in bounded time, never a score."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rlhf.config import FunctionSource
from rlhf.errors import ConfigError, DataError, WorkerError
from rlhf.stages.scoring_function import FunctionScores
from tests.support.runtime import alive, gone

GOOD, PROMPTS = ["tree", "x", "eee"], ["p", "p", "p"]


def source(name: str, **settings: Any) -> FunctionSource:
    module = "array_scores" if name in ("arrays", "matrix") else "scores"
    return FunctionSource(path=f"tests.support.{module}:{name}", **{"timeout_seconds": 5, **settings})


def scored(name: str, responses: list[str], **settings: Any) -> tuple[list[float], dict[str, int]]:
    scores = FunctionScores(source(name, **settings))
    try:
        return scores.score(["p"] * len(responses), responses), dict(scores.errors)
    finally:
        scores.close()


@pytest.mark.parametrize("isolate", [True, False])
def test_the_scores_are_those_of_the_function(isolate: bool) -> None:
    assert scored("count_e", GOOD, isolate=isolate) == ([2.0, 0.0, 3.0], {})
    assert scored("arrays", GOOD, isolate=isolate, rows_per_call=2) == ([4.0, 1.0, 3.0], {})
    odd = ["\ud83d e", "\u2028\0e", "é"]
    assert scored("count_e", odd, isolate=isolate) == ([1.0, 1.0, 0.0], {})
    assert scored("count_e", [], isolate=isolate) == ([], {})


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize(
    ("word", "kind", "shown"),
    [
        ("nan", "not_finite", "nan"),
        ("inf", "not_finite", "-inf"),
        ("beyond", "not_finite", r"1e\+39"),
        ("none", "not_a_number", "None"),
        ("text", "not_a_number", "'1'"),
        ("bool", "not_a_number", "True"),
        ("list", "not_a_number", r"\[1.0\]"),
        ("huge", "not_a_number", "beyond every float"),
    ],
)
def test_a_missing_score_is_an_error_or_a_counted_drop(word: str, kind: str, shown: str, isolate: bool) -> None:
    responses = ["tree", word, "eee"]
    with pytest.raises(DataError, match=rf"scores:wise: returned .*{shown} for response 1 \('{word}'\)"):
        scored("wise", responses, isolate=isolate)
    values, errors = scored("wise", responses, isolate=isolate, on_error="drop")
    assert values[0] == 2.0 and math.isnan(values[1]) and values[2] == 3.0
    assert errors == {kind: 1}


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("name", ["one_missing", "too_many", "endless", "matrix", "no_list"])
def test_wrong_shapes_are_refused_or_dropped(name: str, isolate: bool) -> None:
    wrong = {"matrix": "for response 0", "no_list": "raised TypeError"}.get(name, "scores for 3 responses")
    with pytest.raises((DataError, WorkerError), match=wrong):
        scored(name, GOOD, isolate=isolate)
    values, errors = scored(name, GOOD, isolate=isolate, on_error="drop")
    assert all(map(math.isnan, values)) and sum(errors.values()) == 3


def test_a_call_that_fails_only_for_several_is_counted_once() -> None:
    assert scored("only_alone", GOOD, on_error="drop") == ([1.0, 1.0, 1.0], {"wrong_length": 1})


@pytest.mark.parametrize(
    ("word", "kind", "text"),
    [
        ("hang", "timeout", r"no answer within 0.5 s .* on the response 'hang'"),
        ("exit", "crash", r"ended its process \(exit code 7\)"),
        ("killed", "crash", r"ended its process \(signal 9\)"),
        ("raise", "raised", r"raised LookupError: no such answer \(scores.py, line \d+\)"),
    ],
)
def test_a_function_that_never_answers_is_killed_and_replaced(word: str, kind: str, text: str) -> None:
    started, limit = time.monotonic(), 0.5 if word == "hang" else 5
    with pytest.raises(WorkerError, match=text):
        scored("wise", ["tree", word], rows_per_call=1, timeout_seconds=limit)
    values, errors = scored("wise", ["tree", word, "eee"], on_error="drop", timeout_seconds=limit)
    assert values[0] == 2.0 and math.isnan(values[1]) and values[2] == 3.0
    assert errors == {kind: 1}
    assert time.monotonic() - started < 10  # three deadlines of at most 1.5 s, and six starts on a busy machine


def test_a_catastrophic_regex_holds_a_batch_no_longer_than_its_budget() -> None:
    started = time.monotonic()
    with pytest.raises(WorkerError, match=r"within 0.6 s .* on one of 3 responses \(rows_per_call=1 would tell"):
        scored("wise", ["tree", "hang", "e"], timeout_seconds=0.2)
    assert time.monotonic() - started < 4


def test_output_and_input_of_a_function_are_not_the_channel(capfd: pytest.CaptureFixture[str]) -> None:
    assert scored("prints", GOOD) == ([2.0, 2.0, 2.0], {})
    assert "talking" in capfd.readouterr().out


@pytest.mark.parametrize("isolate", [True, False])
def test_functions_that_are_not_there(isolate: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, text in (("nowhere:f", "nowhere"), ("tests.support.scores:g", "has no function 'g'")):
        with pytest.raises(ConfigError, match=text):
            FunctionScores(FunctionSource(path=path, isolate=isolate))
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(60)\n")
    (tmp_path / "ends_itself.py").write_text("import os\nos._exit(3)\n")
    (tmp_path / "found_here.py").write_text("def f(prompts, responses):\n    return [7] * len(responses)\n")
    monkeypatch.chdir(tmp_path)
    own = FunctionScores(FunctionSource(path="found_here:f", isolate=isolate))
    assert own.score(["p"], ["r"]) == [7.0]
    own.close()
    with pytest.raises(ConfigError, match="not imported within start_timeout_seconds"):
        FunctionScores(FunctionSource(path="slow_to_import:f", start_timeout_seconds=0.5))
    with pytest.raises(ConfigError, match="while it was imported"):
        FunctionScores(FunctionSource(path="ends_itself:f"))


def test_closing_ends_the_process_and_its_children() -> None:
    scores = FunctionScores(source("own_pid"))
    pids = list(map(int, scores.score(["p", "p"], ["a", "b"])))
    assert os.getpid() not in pids and all(map(alive, pids))
    scores.close()
    scores.close()
    assert gone(pids, within=5)


def test_a_request_to_stop_the_run_ends_no_call() -> None:
    """``ray job stop`` and Slurm signal every process below the driver, which wants to finish its step."""
    assert scored("asked_to_end", ["a", "b"]) == ([-signal.SIGTERM] * 2, {})


def test_a_process_that_died_between_calls_is_replaced() -> None:
    scores = FunctionScores(source("own_pid"))
    first = int(scores.score(["p"], ["a"])[0])
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    second = int(scores.score(["p"], ["a"])[0])
    assert second != first and scores.errors == {}
    scores.close()


def test_a_stuck_function_dies_with_a_killed_driver(tmp_path: Path) -> None:
    code = (
        "from rlhf.config import FunctionSource; from rlhf.stages.scoring_function import FunctionScores\n"
        "s = FunctionScores(FunctionSource(path='tests.support.scores:hangs_when_told', timeout_seconds=600))\n"
        "s.score(['p'], ['r'])"
    )
    told = tmp_path / "told"
    driver = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TOLD": str(told)})
    deadline = time.monotonic() + 60
    while not told.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child = int(told.read_text())
    assert alive(child) and child != driver.pid
    driver.kill()
    driver.wait()
    assert gone([child], within=5)
