"""A conversation stays within the model's positions and its chat format, and goes on after what cannot be answered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf import cli
from rlhf.config import ModelConfig, SamplingConfig
from rlhf.data.schema import Message
from rlhf.errors import ConfigError, DataError
from rlhf.rollout.protocol import Rollout
from rlhf.stages import chat
from rlhf.stages.live import CandidateSource
from tests.support.runs import write_reward_run
from tests.support.tiny import build_model


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with 48 positions."""
    return build_model(tmp_path_factory.mktemp("short") / "base", max_position_embeddings=48)


def session_of(base: Path, max_response_tokens: int = 8) -> chat.ChatSession:
    return chat.ChatSession(ModelConfig(name=str(base)), SamplingConfig(max_response_tokens=max_response_tokens))


class Answers:
    """Stands in for drawing: says what it is given, notes what it was asked."""

    def __init__(self, session: chat.ChatSession, texts: list[str]) -> None:
        self.asked: list[tuple[int, ...]] = []
        self._texts, self._encode = iter(texts), session._worker.tokenizer.encode

    def __call__(self, tasks: Any, *_: Any) -> list[Rollout]:
        self.asked.append(tasks[0].prompt_ids)
        ids = tuple(self._encode(next(self._texts), add_special_tokens=False))
        return [Rollout("", tasks[0].prompt_ids, ids, (0.0,) * len(ids), True, 0, "sha")]


def saying(session: chat.ChatSession, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> Answers:
    found = Answers(session, texts)
    monkeypatch.setattr(session._worker, "generate", found)
    return found


def turns(session: chat.ChatSession) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in session._messages]


def test_old_turns_make_room(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of(short)
    answers = saying(session, ["a", "b", "c", "d"], monkeypatch)
    forgotten = []
    for text in ("one", "two", "three", "four"):
        session.answer(text)
        forgotten.append(session.num_forgotten)
    assert all(len(ids) <= 40 for ids in answers.asked), "48 positions, 8 of them for the response"
    assert sum(forgotten) > 0 and all(number % 2 == 0 for number in forgotten), "whole exchanges"
    assert turns(session)[-2:] == [("user", "four"), ("assistant", "d")]
    assert [role for role, _ in turns(session)] == ["user", "assistant"] * (len(turns(session)) // 2)


def test_a_turn_that_is_too_long_alone_is_refused_and_the_conversation_stays(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(short)
    saying(session, ["a", "b"], monkeypatch)
    session.answer("one")
    before = turns(session)
    with pytest.raises(DataError, match=r"beside --max-response-tokens=8 the model has positions for 40: shorten it"):
        session.answer("what " * 400)
    assert turns(session) == before
    with pytest.raises(DataError, match="surrogate"):
        session.answer("\ud800")
    assert turns(session) == before
    assert session.answer("two") == "b"


def test_no_two_user_turns_in_a_row(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of(tiny_base)
    saying(session, ["", "b"], monkeypatch)
    assert session.answer("one") == "" and turns(session) == []
    session.answer("two")
    assert turns(session) == [("user", "two"), ("assistant", "b")]


def test_room_for_no_prompt_is_refused_at_the_start(short: Path) -> None:
    with pytest.raises(ConfigError, match=r"--max-response-tokens=48 \+ a prompt=1 = 49 must be at most 48"):
        session_of(short, 48)


def test_who_scores_does_not_talk(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = write_reward_run(tmp_path / "judge", tiny_base, 0)
    assert cli.main(["chat", str(judge), "--prompt", "x"]) == 2
    assert "is a reward run; a policy is wanted" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="is a reward run; a policy is wanted"):
        CandidateSource(str(judge), SamplingConfig())


def test_the_terminal_goes_on_after_what_cannot_be_answered(
    short: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["what " * 400, "\ud800", "hello"])

    def typed(*_: Any) -> Iterator[str]:
        yield from lines

    monkeypatch.setattr(chat, "read_lines", typed)
    assert cli.main(["chat", str(short), "--max-response-tokens", "4"]) == 0
    said = capsys.readouterr().out
    assert said.count("not answered: ") == 2 and said.count("policy") == 1
    assert cli.main(["chat", str(short), "--prompt", "what " * 400, "--max-response-tokens", "4"]) == 2


def test_the_page_s_candidates_stay_within_the_positions(short: Path) -> None:
    source = CandidateSource(str(short), SamplingConfig(max_prompt_tokens=1024, max_response_tokens=8))
    assert source.candidates("hello", 2, 0)["prompt"] == [Message("user", "hello").as_dict()]
    with pytest.raises(DataError, match="tokens, the limit is 40"):
        source.candidates("what " * 400, 2, 0)
