"""The process in which a score function runs: it may hang, crash or print, and is simply replaced.

Loads the standard library only, so that a new one is ready in tens of milliseconds.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import json
import os
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

_HEAD = struct.Struct("!Q")
_SHOWN = 200
_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


def import_function(path: str) -> Callable[..., Any]:
    """Imports ``module:function``; the working directory is importable.

    Raises:
        ImportError: the module or the function does not exist.
    """
    module_name, _, name = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    function = getattr(importlib.import_module(module_name), name, None)
    if not callable(function):
        raise ImportError(f"{module_name} has no function {name!r}")
    return function


def reads_meta(function: Callable[..., Any]) -> bool:
    """Whether a score function is called with ``meta=`` beside prompts and responses: it has a parameter of that name.

    Raises:
        TypeError: it can be called neither so nor without.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtin ones do not tell
        return False
    named = signature.parameters.get("meta")
    wanted = named is not None and named.kind in (named.POSITIONAL_OR_KEYWORD, named.KEYWORD_ONLY)
    try:
        signature.bind([], [], **({"meta": []} if wanted else {}))
    except TypeError as error:
        raise TypeError(
            f"its parameters {signature} fit neither (prompts, responses) nor (prompts, responses, meta): {error}"
        ) from None
    return wanted


def call_rows(
    function: Callable[..., Any], prompts: list[str], responses: list[str], meta: list[Any] | None = None
) -> dict[str, Any]:
    """Calls a score function; whatever it does becomes a plain answer.

    Args:
        meta: handed on as ``meta=``; None: the function has no such parameter.

    Returns:
        ``{"scores": [...]}``, an entry that is no number written as ``{"not": text}``; or ``{"raised": text}``.
    """
    try:
        found = function(prompts, responses) if meta is None else function(prompts, responses, meta=meta)
        return {"scores": [_plain(value) for value in islice(found, len(responses) + 1)]}
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}, line {last.lineno}"
        return {"raised": f"{type(error).__name__}: {str(error)[:_SHOWN]} ({where})"}


def _plain(value: Any) -> float | dict[str, str]:
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()  # NumPy and torch scalars
    if isinstance(value, bool) or not isinstance(value, int | float):
        return {"not": repr(value)[:_SHOWN]}
    try:
        return float(value)
    except OverflowError:
        return {"not": "an integer beyond every float"}


def send(channel: socket.socket, message: dict[str, Any]) -> None:
    """Writes one message: its length, then JSON."""
    data = json.dumps(message).encode()
    channel.sendall(_HEAD.pack(len(data)) + data)


def receive(read: Callable[[int], bytes]) -> dict[str, Any]:
    """Reads one message.

    Args:
        read: returns at most so many bytes; none when the other side is gone.

    Raises:
        EOFError: the other side is gone.
    """
    (length,) = _HEAD.unpack(_read_exactly(read, _HEAD.size))
    return json.loads(_read_exactly(read, length))


def _read_exactly(read: Callable[[int], bytes], count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        piece = read(min(count - len(parts), 1 << 20))
        if not piece:
            raise EOFError
        parts += piece
    return bytes(parts)


def _leave_stopping_to_the_driver() -> None:
    """Lives through SIGTERM: who ends a job signals its whole tree, and the driver still finishes and commits its step.

    It is a handler because an ignored signal would stay ignored in what the function starts.
    """
    own = os.getpid()

    def handle(number: int, _: Any) -> None:
        if os.getpid() != own:  # a fork of the function's
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, handle)


def serve(descriptor: int, path: str, parent: int) -> None:
    """Answers calls until the other side is gone."""
    if sys.platform == "linux":
        # A function that holds the interpreter lock would not see that the driver has died: the kernel does
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            return
    _leave_stopping_to_the_driver()
    channel = socket.socket(fileno=descriptor)
    try:
        function = import_function(path)
    except Exception as error:
        send(channel, {"refused": f"cannot import {path}: {type(error).__name__}: {str(error)[:_SHOWN]}"})
        return
    try:
        wants_meta = reads_meta(function)
    except TypeError as error:
        send(channel, {"refused": str(error)})
        return
    send(channel, {"ready": os.getpid(), "reads_meta": wants_meta})
    while True:
        try:
            call = receive(channel.recv)
        except EOFError:
            return
        answer = call_rows(function, call["prompts"], call["responses"], call.get("meta"))
        sys.stdout.flush()  # a later kill would lose what it printed
        send(channel, answer)
