"""Talking to a trained policy in the terminal."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator

from rlhf.config import ModelConfig, SamplingConfig, derive_seed
from rlhf.data.schema import Message
from rlhf.models.source import resolve_model
from rlhf.rollout.protocol import PromptTask
from rlhf.workers.context import WorkerContext
from rlhf.workers.rollout import RolloutWorker


class ChatSession:
    """A conversation with one policy, in this process and without Ray."""

    def __init__(self, model: ModelConfig, sampling: SamplingConfig, *, seed: int = 0, threads: int = 2) -> None:
        record = resolve_model(model.name, model.revision, key="RUN").record
        if record is not None:
            model = model.model_copy(update={"quantization": record.quantization})
        context = WorkerContext("chat", 0, 1, tempfile.gettempdir())
        self._worker = RolloutWorker(context, model, None, microbatch=1, threads=threads, follows_trainer=False)
        self._sampling, self._seed, self._messages = sampling, seed, list[Message]()

    def reset(self) -> None:
        """Forgets the conversation."""
        self._messages.clear()

    def answer(self, text: str) -> str:
        """The policy's answer to one more user turn."""
        plain = self._worker.chat.style == "plain"
        self._messages = [Message("text", text)] if plain else [*self._messages, Message("user", text)]
        prompt = tuple(self._worker.chat.encode_prompt(tuple(self._messages)))
        seed = derive_seed(self._seed, "chat", len(self._messages), text)
        rollout = self._worker.generate([PromptTask("chat", prompt, seed)], self._sampling, 0)[0]
        answer = self._worker.chat.decode_response(list(rollout.response_ids))
        if not plain and answer.strip():
            self._messages.append(Message("assistant", answer))
        return answer


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
