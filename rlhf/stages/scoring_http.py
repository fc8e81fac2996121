"""Scores from a reward server: every attempt has one deadline, attempts are few, and nothing is guessed."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import random
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from rlhf.config import HttpSource, read_secret
from rlhf.errors import ConfigError
from rlhf.stages.scoring_rows import MISSING, FaultPolicy, Meta, ScoreFault

MAX_WAIT_SECONDS = 30.0
_MAX_ANSWER_BYTES = 2**20
_MAX_ANSWER_BYTES_PER_ROW = 1024
_AGAIN = (408, 425, 429)


class _Line:
    """The socket of one attempt, which another thread may cut; ``http.client`` forgets it after the headers."""

    def __init__(self) -> None:
        self._lock, self._is_cut = threading.Lock(), False
        self._socket: socket.socket | None = None

    def hold(self, channel: socket.socket) -> None:
        """Notes the socket; one that is late is cut at once, before anything is sent."""
        with self._lock:
            self._socket = channel
            if self._is_cut:
                raise TimeoutError

    def cut(self) -> None:
        """Ends the conversation: closing alone would not wake a thread that reads."""
        with self._lock:
            self._is_cut = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)


class HttpScores:
    """Asks ``source.url``; implements ``scoring_rows.ScoreRows``.

    Args:
        source: address, token, deadlines.
        index: the source's place in ``scores``, for messages.

    Raises:
        ConfigError: the token or the certificates cannot be read.
    """

    def __init__(self, source: HttpSource, index: int = 0) -> None:
        self._source = source
        self._policy = FaultPolicy(f"reward server {source.url}", index, source.on_error)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if source.token is not None:
            self._headers["Authorization"] = f"Bearer {read_secret(source.token)}"
        self._context = _tls_context(source)

    @property
    def errors(self) -> Counter[str]:
        """Failed attempts and missing scores so far, by kind."""
        return self._policy.errors

    @property
    def reads_meta(self) -> bool:
        """Whether the server is told about the rows."""
        return self._source.send_meta

    def score(self, prompts: Sequence[str], responses: Sequence[str], meta: Meta | None = None) -> list[float]:
        """One score per response, NaN where it is dropped; see ``ScoreRows``."""
        size = self._source.rows_per_request
        about = [dict(row) for row in meta] if meta is not None else [{} for _ in responses]
        parts = [
            (list(prompts[part]), list(responses[part]), about[part])
            for part in (slice(start, start + size) for start in range(0, len(responses), size))
        ]
        with ThreadPoolExecutor(self._source.concurrent_requests, "reward-request") as pool:
            found = list(pool.map(lambda part: self._part(*part), parts))
        return [value for values in found for value in values]

    def close(self) -> None:
        """Nothing is held open between calls."""

    def _part(self, prompts: list[str], responses: list[str], meta: list[dict[str, Any]]) -> list[float]:
        told = {"meta": meta} if self._source.send_meta else {}
        body = json.dumps({"prompts": prompts, "responses": responses, **told}).encode()
        wait = self._source.backoff_seconds
        for left in range(self._source.retries, -1, -1):
            found: list[float | ScoreFault] = []
            try:
                found = self._policy.check(self._attempt(body, len(responses)), responses)
                faults = [entry for entry in found if isinstance(entry, ScoreFault)]
                if not faults:
                    break
            except ScoreFault as fault:
                faults = [fault]
            for one in faults:
                self._policy.count(one)
            if not left or not all(one.again for one in faults):
                self._policy.settle(faults[0])
                break
            time.sleep(random.uniform(0, min(wait, MAX_WAIT_SECONDS)))
            wait *= 2
        return [entry if isinstance(entry, float) else MISSING for entry in found] or [MISSING] * len(responses)

    def _attempt(self, body: bytes, num_rows: int) -> Any:
        """The decoded ``scores`` of one request.

        Raises:
            ScoreFault: anything but a JSON object with scores, within the deadline.
        """
        status, reason, data, location = self._exchange(body, num_rows)
        if 300 <= status < 400:
            raise ScoreFault(
                "redirect",
                f"redirects to {location or 'nowhere'} (status {status}); redirects are not followed, because prompts "
                "and token would go there: set url to the final address",
                again=False,
            )
        if status != 200:
            text = data[:200].decode("utf-8", errors="replace")
            raise ScoreFault("status", f"answered {status} {reason}: {text!r}", again=status >= 500 or status in _AGAIN)
        return read_answer(data)

    def _exchange(self, body: bytes, num_rows: int) -> tuple[int, str, bytes, str | None]:
        """One request under one deadline, whatever it is that takes long: the name, the handshake, a slow drip.

        Socket timeouts bound each wait, not their sum, and nothing bounds the look-up of a name: so the request runs
        in a thread of its own, and past the deadline its connection is cut.
        """
        done: queue.SimpleQueue[tuple[int, str, bytes, str | None] | ScoreFault] = queue.SimpleQueue()
        connection, line = self._connection(), _Line()

        def run() -> None:
            try:
                connection.connect()
                line.hold(connection.sock)
                done.put(_request(connection, self._target(), body, self._headers, num_rows))
            except (OSError, http.client.HTTPException) as error:
                done.put(_network_fault(error))
            finally:
                connection.close()

        threading.Thread(target=run, daemon=True, name="reward-request").start()
        seconds = self._source.timeout_seconds
        try:
            found = done.get(timeout=seconds)
        except queue.Empty:
            line.cut()
            found = ScoreFault("timeout", f"no whole answer within timeout_seconds={seconds:g}")
        if isinstance(found, ScoreFault):
            raise found
        return found

    def _connection(self) -> http.client.HTTPConnection:
        parts = urlsplit(self._source.url)
        seconds = self._source.timeout_seconds
        if parts.scheme == "https":
            return http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=seconds, context=self._context)
        return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=seconds)

    def _target(self) -> str:
        parts = urlsplit(self._source.url)
        return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def read_answer(data: bytes) -> Any:
    """What stands under ``scores`` in an answer; whether these are finite numbers is for ``FaultPolicy.check``.

    Raises:
        ScoreFault: no JSON object with scores.
    """
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        raise ScoreFault("not_json", f"answered something that is not JSON: {data[:80]!r}") from None
    if not isinstance(answer, dict) or "scores" not in answer:
        raise ScoreFault("wrong_length", 'answered JSON without "scores"')
    return answer["scores"]


def _request(
    connection: http.client.HTTPConnection, target: str, body: bytes, headers: dict[str, str], num_rows: int
) -> tuple[int, str, bytes, str | None]:
    connection.request("POST", target, body=body, headers=headers)
    response = connection.getresponse()
    limit = _MAX_ANSWER_BYTES + num_rows * _MAX_ANSWER_BYTES_PER_ROW
    data = response.read(limit + 1)
    if len(data) > limit:
        raise http.client.HTTPException(f"the answer is longer than {limit} bytes")
    return response.status, response.reason, data, response.getheader("Location")


def _network_fault(error: Exception) -> ScoreFault:
    if isinstance(error, TimeoutError):
        return ScoreFault("timeout", "no answer within timeout_seconds")
    if isinstance(error, ssl.SSLCertVerificationError):
        text = f"its certificate is not trusted ({error.verify_message}); name its authority with ca_file"
        return ScoreFault("tls", text, again=False)
    return ScoreFault("connection", f"cannot be reached: {type(error).__name__}: {error}")


def _tls_context(source: HttpSource) -> ssl.SSLContext | None:
    if not source.url.startswith("https"):
        return None
    try:
        return ssl.create_default_context(cafile=source.ca_file)
    except OSError as error:
        raise ConfigError(f"ca_file={source.ca_file!r} holds no readable certificates: {error}") from None
