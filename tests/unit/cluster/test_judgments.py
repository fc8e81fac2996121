"""Waiting for people: what ends the wait, and what does not."""

from __future__ import annotations

import pytest

from cluster import judgments
from rlhf.errors import ConfigError, WorkerError


def test_a_store_that_is_away_for_a_while_ends_no_wait(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    away = WorkerError("preference store", 0, "the database is restarting")
    answers: list[int | Exception] = [1, away, away, 2]

    def count(project: str) -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(judgments, "count_judgments", count)
    wanted = judgments.Judgments(project="quiz", count=2, poll_seconds=0.01)
    assert judgments.wait_for_judgments(wanted, wait=True) == 0
    told = capsys.readouterr().out
    assert told.count("the database is restarting; trying again every 0.01 s") == 1, "said, and said once"
    assert "2 judgments in project quiz" in told
    answers[:] = [away]
    with pytest.raises(WorkerError, match="restarting"):
        judgments.wait_for_judgments(wanted, wait=True)
    answers[:] = [1, *[away] * 1000]
    with pytest.raises(ConfigError, match="1 of 2 judgments after"):
        judgments.wait_for_judgments(wanted.model_copy(update={"timeout_hours": 1e-5}), wait=True)
    answers[:] = [1, ConfigError("there is no project 'quiz' any more")]
    with pytest.raises(ConfigError, match="any more"):
        judgments.wait_for_judgments(wanted, wait=True)


def test_a_count_that_gets_no_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_STORE", "postgresql://nobody@127.0.0.1:1/x")
    with pytest.raises(WorkerError, match=r"'quiz' cannot be counted: .*Connection refused"):
        judgments.count_judgments("quiz")
    monkeypatch.setattr(judgments, "COUNT_SECONDS", 0.01)
    with pytest.raises(WorkerError, match=r"'quiz' cannot be counted: no answer within 0\.01 s"):
        judgments.count_judgments("quiz")
