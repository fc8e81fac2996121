"""Following a job: its log as it is written, its last progress line, its exit code."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import aiohttp

from cluster.client import Attempt, BoundedClient, get_attempt
from rlhf.errors import ConfigError, WorkerError
from rlhf.telemetry.console import get_console

PROGRESS = re.compile(r"^\w[\w ]{0,20}? +\d+/\d+  ")
"""How a stage's progress line begins: name, step/total."""
QUIET_SECONDS = 20.0
"""Silence after which the job's status is asked for and the log is opened anew."""
STOPPED_EXIT_CODE = 130


def follow(client: BoundedClient, submission_id: str, *, give_up_seconds: float = 300.0) -> int:
    """Prints a job's log until it ends; returns the job's exit code.

    Waits for: log lines. Every wait is bounded: after ``QUIET_SECONDS`` of silence the status is asked for and the
    log opened again where it was left. A job server that stays away for ``give_up_seconds`` ends the following
    (the job itself is not touched).

    Raises:
        WorkerError: the job server was gone for too long.
    """
    console = get_console()
    status = console.status("waiting for the job to start", spinner="dots") if console.is_terminal else nullcontext()
    with status as live:

        def show(line: str) -> None:
            if live is not None and PROGRESS.match(line):
                live.update(line)
            else:
                console.print(line, markup=False, soft_wrap=True)

        log = _Log(show)
        asyncio.run(_follow(client, submission_id, log, give_up_seconds))
        log.flush()
    return report_end(wait_for_end(client, submission_id, give_up_seconds))


def wait_for_end(
    client: BoundedClient, submission_id: str, give_up_seconds: float = 300.0, limit_seconds: float | None = None
) -> Attempt:
    """Waits until a job has ended, as patiently as ``follow``.

    Raises:
        WorkerError: the job server was gone for ``give_up_seconds``, or the job still runs after ``limit_seconds``.
    """
    started = last_answer = time.monotonic()
    while True:
        try:
            attempt = get_attempt(client, submission_id)
            last_answer = time.monotonic()
            if not attempt.live:
                return attempt
        except (ConfigError, WorkerError) as error:
            if time.monotonic() - last_answer > give_up_seconds:
                raise WorkerError("job server", 0, f"gone for {give_up_seconds:.0f} s: {error}") from None
        if limit_seconds is not None and time.monotonic() - started > limit_seconds:
            raise WorkerError("job", 0, f"{submission_id} still runs after {limit_seconds:.0f} s")
        time.sleep(0.5)


def report_end(attempt: Attempt) -> int:
    """Says how a job ended; its exit code (130 for a stopped one)."""
    code = exit_code(attempt)
    console = get_console()
    seconds = f" after {attempt.ended - attempt.started:.0f} s" if attempt.ended and attempt.started else ""
    console.print(f"{attempt.submission_id}: {attempt.status}{seconds}, exit code {code}", markup=False)
    if attempt.status == "FAILED" and attempt.exit_code is None:  # its log could not tell
        console.print(attempt.message, markup=False, soft_wrap=True)
    return code


def exit_code(attempt: Attempt) -> int:
    """Exit code of an ended job."""
    if attempt.status == "SUCCEEDED":
        return 0
    if attempt.status == "STOPPED":
        return STOPPED_EXIT_CODE
    code = attempt.exit_code or 1
    return code if code > 0 else 128 - code  # ended by a signal


class _Log:
    """Whole lines out of chunks; a log that is opened again is skipped up to where it was left."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._seen = self._at = 0
        self._rest = ""

    def reopen(self) -> None:
        self._at = 0

    def add(self, chunk: str) -> None:
        new = chunk[max(0, self._seen - self._at) :]
        self._at += len(chunk)
        self._seen = max(self._seen, self._at)
        *lines, self._rest = (self._rest + new).split("\n")
        for line in lines:
            self._show(line)

    def flush(self) -> None:
        if self._rest:
            self._show(self._rest)
            self._rest = ""


async def _follow(client: BoundedClient, submission_id: str, log: _Log, give_up_seconds: float) -> None:
    last_answer = time.monotonic()
    while True:
        log.reopen()
        if await _read(client, submission_id, log):
            return
        try:
            live = (await asyncio.to_thread(get_attempt, client, submission_id)).live
            last_answer = time.monotonic()
        except (ConfigError, WorkerError) as error:
            live = True
            if time.monotonic() - last_answer > give_up_seconds:
                raise WorkerError("job server", 0, f"gone for {give_up_seconds:.0f} s: {error}") from None
        if not live:
            await _read(client, submission_id, log)
            return
        await asyncio.sleep(0.5)


async def _read(client: BoundedClient, submission_id: str, log: _Log) -> bool:
    """Reads until the log's end (True), or until silence or a broken connection (False)."""
    chunks: Any = client.tail_job_logs(submission_id)
    try:
        while True:
            log.add(await asyncio.wait_for(anext(chunks), QUIET_SECONDS))
    except StopAsyncIteration:
        return True
    except (TimeoutError, aiohttp.ClientError, OSError, RuntimeError):
        return False
    finally:
        await chunks.aclose()
