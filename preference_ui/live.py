"""Candidates on demand from a policy that runs in a process of its own.

The process is started by the first request and answers one at a time. Nothing of the training stack is loaded here:
requests and answers are lines of JSON (see ``rlhf.stages.live``).
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Any

from preference_ui.errors import DataError, GenerationError
from preference_ui.projects import ItemSpec, ResponseSpec
from rlhf.data.schema import Message

MODULE = "rlhf.stages.live"
START_SECONDS = 180.0
ANSWER_SECONDS = 180.0
_FIELDS = ("text", "run", "step", "adapter_uri", "adapter_sha256", "sampling", "num_tokens")


@dataclass(frozen=True)
class LiveOptions:
    """Which policy answers, and how.

    Attributes:
        run: a run directory, model directory or hub id.
        max_response_tokens: longest answer.
        threads: processor threads of the process.
    """

    run: str
    temperature: float = 1.0
    max_response_tokens: int = 256
    threads: int = 1

    def command(self) -> list[str]:
        """The process's command line."""
        return [
            sys.executable, "-m", MODULE, self.run,
            "--temperature", str(self.temperature),
            "--max-response-tokens", str(self.max_response_tokens),
            "--threads", str(self.threads),
        ]  # fmt: skip


class LivePolicy:
    """Owns the process. Threads may call ``item``; they wait for each other.

    A process that died or hung is replaced at the next request.
    """

    def __init__(self, options: LiveOptions) -> None:
        self.options = options
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()

    def item(self, text: str, count: int, seed: int) -> ItemSpec:
        """Draw ``count`` responses to one question; at least two of them differ.

        Waits for: the process to load (first call) and to answer, each within its time limit.

        Raises:
            GenerationError: the policy cannot be loaded, died, took too long, or refused the prompt.
            DataError: fewer than two different responses.
        """
        with self._lock:
            answer = self._ask({"text": text, "count": count, "seed": seed})
        responses = tuple(ResponseSpec(**{k: r[k] for k in _FIELDS if k in r}) for r in answer["responses"])
        if len(responses) < 2:
            raise DataError("the policy gave fewer than two different responses")
        prompt = tuple(Message(m["role"], m["content"]) for m in answer["prompt"])
        return ItemSpec(prompt, responses, source=f"live:{self.options.run}")

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._stop()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self._running()
        try:
            if process.stdin is None:
                raise GenerationError("the policy's process has no input")
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        except OSError as error:
            self._stop()
            raise GenerationError(f"the policy's process has ended: {error}") from error
        return self._answer(ANSWER_SECONDS)

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        # Its complaints go to this server's own log.
        self._process = subprocess.Popen(
            self.options.command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self._lines = queue.Queue()
        threading.Thread(target=_read, args=(self._process, self._lines), daemon=True).start()
        try:
            self._answer(START_SECONDS)
        except GenerationError:
            self._stop()
            raise
        return self._process

    def _answer(self, seconds: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            self._stop()
            raise GenerationError(f"the policy did not answer within {seconds:g} s") from None
        if line is None:
            self._stop()
            raise GenerationError(f"the process of {self.options.run} ended; its messages are in the server's log")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise GenerationError(str(answer["error"]))
        return answer

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    try:
        for line in process.stdout or ():
            lines.put(line)
    except ValueError:
        pass  # closed by ``_stop``
    lines.put(None)
