"""Talking to a trained policy in the terminal."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator

from rlhf.config import ModelConfig, SamplingConfig, derive_seed
from rlhf.data.schema import Message
from rlhf.errors import DataError
from rlhf.models.policy_source import as_trained, resolve_policy
from rlhf.models.positions import prompt_room
from rlhf.rollout.protocol import PromptTask
from rlhf.workers.context import WorkerContext
from rlhf.workers.rollout import RolloutWorker


class ChatSession:
    """A conversation with one policy, in this process and without Ray.

    Attributes:
        num_forgotten: turns, the oldest ones, that had no room any more beside the last answer.

    Raises:
        ConfigError: it is no policy, or no prompt has room beside the longest response.
    """

    def __init__(self, model: ModelConfig, sampling: SamplingConfig, *, seed: int = 0, threads: int = 2) -> None:
        source = resolve_policy(model.name, model.revision, key="RUN")
        model = as_trained(model, source)
        self._room = prompt_room(source, model, sampling.max_response_tokens)
        self.num_forgotten = 0
        context = WorkerContext("chat", 0, 1, tempfile.gettempdir())
        self._worker = RolloutWorker(context, model, None, microbatch=1, threads=threads, follows_trainer=False)
        self._sampling, self._seed, self._messages = sampling, seed, list[Message]()

    def reset(self) -> None:
        """Forgets the conversation."""
        self._messages.clear()

    def answer(self, text: str) -> str:
        """The policy's answer to one more user turn; exchanges that have no room any more are forgotten, oldest first.

        A turn that gets no answer, or a blank one, is forgotten too: no format has two user turns in a row.

        Raises:
            DataError: the turn alone is too long, or the chat format cannot write it; the conversation stays as it was.
        """
        plain = self._worker.chat.style == "plain"
        said = [Message("text", text)] if plain else [*self._messages, Message("user", text)]
        turns, prompt = self._with_room(said)
        seed = derive_seed(self._seed, "chat", len(turns), text)
        rollout = self._worker.generate([PromptTask("chat", prompt, seed)], self._sampling, 0)[0]
        answer = self._worker.chat.decode_response(list(rollout.response_ids))
        self.num_forgotten = len(said) - len(turns)
        self._messages = turns[:-1]
        if not plain and answer.strip():
            self._messages = [*turns, Message("assistant", answer)]
        return answer

    def _with_room(self, said: list[Message]) -> tuple[list[Message], tuple[int, ...]]:
        """The newest turns that the model has positions for, from a user's turn on, and their tokens."""
        num_tokens = 0
        for first in [at for at, turn in enumerate(said) if turn.role != "assistant"]:
            ids = tuple(self._worker.chat.encode_prompt(tuple(said[first:])))
            num_tokens = len(ids)
            if self._room is None or num_tokens <= self._room:
                return said[first:], ids
        raise DataError(
            f"the message has {num_tokens} tokens, and beside --max-response-tokens="
            f"{self._sampling.max_response_tokens} the model has positions for {self._room}: shorten it, or take fewer "
            "tokens for the response"
        )


def read_lines(ask: Callable[[], str]) -> Iterator[str]:
    """Lines until end of input or ``/quit``."""
    while True:
        try:
            line = ask().strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line == "/quit":
            return
        if line:
            yield line
