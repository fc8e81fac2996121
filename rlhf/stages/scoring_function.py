"""Scores from a Python function that somebody else wrote: with a deadline, in a process that can be killed."""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rlhf.config import FunctionSource
from rlhf.errors import ConfigError
from rlhf.stages.scoring_child import call_rows, import_function, reads_meta, receive, send
from rlhf.stages.scoring_rows import MISSING, FaultPolicy, Meta, ScoreFault

_BOOT = (
    "import json, sys; a = sys.argv; sys.path[:] = json.loads(a[1]); "
    "from rlhf.stages.scoring_child import serve; serve(int(a[2]), a[3], int(a[4]))"
)


def load_function(path: str) -> Callable[..., Any]:
    """Imports ``module:function`` into this process.

    Raises:
        ConfigError: when the module or the function does not exist.
    """
    try:
        return import_function(path)
    except ImportError as error:
        raise ConfigError(f"score function {path!r}: cannot import {error.name or path}: {error}") from error


def _reads_meta(path: str, function: Callable[..., Any]) -> bool:
    try:
        return reads_meta(function)
    except TypeError as error:
        raise ConfigError(f"score function {path!r}: {error}") from None


class FunctionScores:
    """Calls ``source.path``; implements ``scoring_rows.ScoreRows``.

    After a call that failed, and with ``on_error=drop``, its rows are called one by one: those that fail alone are
    the ones dropped.
    """

    def __init__(self, source: FunctionSource, index: int = 0) -> None:
        self._source = source
        self._policy = FaultPolicy(f"score function {source.path}", index, source.on_error)
        self._host: FunctionProcess | None = None
        self._answer: Callable[..., dict[str, Any]]
        if source.isolate:
            self._host = FunctionProcess(source)
            self._answer, self._reads_meta = self._host.call, self._host.reads_meta
        else:
            function = load_function(source.path)
            self._answer, self._reads_meta = partial(_call_here, function), _reads_meta(source.path, function)

    @property
    def errors(self) -> Counter[str]:
        """Faults so far, by kind."""
        return self._policy.errors

    @property
    def reads_meta(self) -> bool:
        """Whether the function has a parameter ``meta``."""
        return self._reads_meta

    def score(self, prompts: Sequence[str], responses: Sequence[str], meta: Meta | None = None) -> list[float]:
        """One score per response, NaN where it is dropped; see ``ScoreRows``."""
        about = [dict(row) for row in meta] if meta is not None else [{} for _ in responses]
        values = [MISSING] * len(responses)
        step = self._source.rows_per_call or max(1, len(responses))
        for start in range(0, len(responses), step):
            part = slice(start, start + step)
            values[part] = self._call(list(prompts[part]), list(responses[part]), about[part])
        return values

    def close(self) -> None:
        """Ends the process."""
        if self._host is not None:
            self._host.close()

    def _call(self, prompts: list[str], responses: list[str], meta: list[dict[str, Any]]) -> list[float]:
        try:
            found = self._policy.check(self._ask(prompts, responses, meta), responses)
        except ScoreFault as fault:
            before = self._policy.errors.total()
            if self._source.on_error == "drop" and len(responses) > 1:
                singly = [self._call([p], [r], [m])[0] for p, r, m in zip(prompts, responses, meta, strict=True)]
                if self._policy.errors.total() == before:
                    self._policy.count(fault)  # only all together they fail
                return singly
            self._policy.count(fault)
            self._policy.settle(fault)
            return [MISSING] * len(responses)
        for entry in found:
            if isinstance(entry, ScoreFault):
                self._policy.count(entry)
                self._policy.settle(entry)
        return [MISSING if isinstance(entry, ScoreFault) else entry for entry in found]

    def _ask(self, prompts: list[str], responses: list[str], meta: list[dict[str, Any]]) -> Any:
        told = meta if self._reads_meta else None
        answer = self._answer(prompts, responses, told)
        if "raised" in answer:
            raise ScoreFault("raised", f"raised {answer['raised']} on {_which(responses)}")
        return answer["scores"]


def _call_here(
    function: Callable[..., Any], prompts: list[str], responses: list[str], told: list[dict[str, Any]] | None
) -> dict[str, Any]:
    """In this process; it may change what it is given, and the rows are read again."""
    return call_rows(function, prompts, responses, copy.deepcopy(told))


class FunctionProcess:
    """One child process that serves one function; replaced after a call that never came back.

    Args:
        source: path, deadlines.

    Raises:
        ConfigError: the function cannot be imported.
    """

    def __init__(self, source: FunctionSource) -> None:
        self._source = source
        self._end: Callable[[], Any] | None = None
        try:
            self._start()
        except ScoreFault as fault:
            raise ConfigError(f"score function {source.path!r}: {fault.text}") from None

    def call(
        self, prompts: list[str], responses: list[str], meta: list[dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        """The function's answer (see ``call_rows``).

        Args:
            meta: for a function that ``reads_meta``.

        Raises:
            ScoreFault: ``timeout`` or ``crash``; the process is then gone, and the next call starts a new one.
        """
        if self._end is None or _exit_status(self._process, wait_seconds=0) is not None:
            self.close()
            self._start()
        budget = self._source.timeout_seconds * len(responses)
        try:
            self._channel.settimeout(budget)
            told = {} if meta is None else {"meta": meta}
            send(self._channel, {"prompts": prompts, "responses": responses, **told})
            return self._receive(budget)
        except TimeoutError:
            self.close()
            raise ScoreFault(
                "timeout",
                f"gave no answer within {budget:g} s (timeout_seconds={self._source.timeout_seconds:g} x "
                f"{len(responses)}) on {_which(responses)} and was killed; raise timeout_seconds, or repair it",
            ) from None
        except (EOFError, OSError):
            code = self._exit_code()
            self.close()
            raise ScoreFault("crash", f"ended its process ({code}) on {_which(responses)}") from None

    def close(self) -> None:
        """Kills the process and what it started."""
        if self._end is not None:
            self._end()
            self._end = None

    def _start(self) -> None:
        own, theirs = socket.socketpair()
        with theirs:
            arguments = [json.dumps(sys.path), str(theirs.fileno()), self._source.path, str(os.getpid())]
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, *arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._channel = own
        self._end = weakref.finalize(self, _end, self._process, own)
        seconds = self._source.start_timeout_seconds
        try:
            answer = self._receive(seconds)
        except TimeoutError:
            self.close()
            raise ScoreFault("timeout", f"was not imported within start_timeout_seconds={seconds:g}") from None
        except (EOFError, OSError):
            code = self._exit_code()
            self.close()
            raise ScoreFault("crash", f"ended its process while it was imported ({code})") from None
        if "refused" in answer:
            self.close()
            raise ScoreFault("crash", answer["refused"])
        self.reads_meta = bool(answer["reads_meta"])

    def _receive(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds

        def read(count: int) -> bytes:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._channel.settimeout(left)
            return self._channel.recv(count)

        return receive(read)

    def _exit_code(self) -> str:
        return _exit_status(self._process, wait_seconds=5) or "it closed its channel"


def _exit_status(process: subprocess.Popen[bytes], *, wait_seconds: float) -> str | None:
    """How a process ended, None while it lives; it is not reaped, so its id stays its own until ``_end``."""
    deadline = time.monotonic() + wait_seconds
    while (found := os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is None:
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.02)
    return f"exit code {found.si_status}" if found.si_code == os.CLD_EXITED else f"signal {found.si_status}"


def _end(process: subprocess.Popen[bytes], channel: socket.socket) -> None:
    channel.close()
    try:
        os.killpg(process.pid, signal.SIGKILL)  # it leads a session of its own, so its children go too
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()


def _which(responses: list[str]) -> str:
    if len(responses) == 1:
        return f"the response {responses[0][:60]!r}"
    return f"one of {len(responses)} responses (rows_per_call=1 would tell which)"
