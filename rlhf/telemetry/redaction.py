"""Takes secrets out of text before it reaches a file or a terminal that people share."""

from __future__ import annotations

import os
import re
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from rlhf.config.secret import NAMES_A_FILE, SECRET_NAME, mask_literals, resolved_secrets

_URL_PASSWORD = re.compile(r"(?P<head>[A-Za-z][\w+.-]*://[^\s/:@]*:)[^\s/]*(?=@)")
_URL_PARAMETER = re.compile(
    r"(?P<head>[?&][\w-]*(?:token|key|secret|password|passwd)[\w-]*=)[^&\s\"'#]+", re.IGNORECASE
)
_BEARER = re.compile(r"(?P<head>\bBearer\s+)[\w.~+/=-]{6,}", re.IGNORECASE)

MASK = "***"
MIN_SECRET_CHARACTERS = 6  # shorter values ("1", "true") are settings; masking them would garble every line
_MAX_FILE_BYTES = 4096
# Where Ray and the model hub keep their tokens when no variable says otherwise.
_TOKEN_FILES = ("~/.ray/auth_token", "~/.cache/huggingface/token")

_read: dict[str, tuple[int, str]] = {}


def secret_values(environ: Mapping[str, str] | None = None) -> list[str]:
    """Secrets that this process can know, longest first, with their URL-quoted forms.

    They are the values of environment variables whose names look secret, the contents of the files that such
    variables name (``..._PATH``, ``..._FILE``) and, for this process's own environment, the token files of Ray and
    the hub and whatever ``read_secret`` has read. Longest first, so that a secret that contains another one leaves no
    tail behind.
    """
    found: set[str] = set()
    if environ is None:
        environ = os.environ
        found.update(resolved_secrets())
        found.update(_content(path) for path in _TOKEN_FILES)
    for name, value in environ.items():
        if SECRET_NAME.search(name):
            found.add(_content(value) if NAMES_A_FILE.search(name) else value.strip())
    known = {value for value in found if len(value) >= MIN_SECRET_CHARACTERS}
    known |= {quote(value, safe="") for value in known}
    return sorted(known, key=lambda value: (-len(value), value))


def redact_text(text: str, environ: Mapping[str, str] | None = None) -> str:
    """Masks every secret of ``secret_values``, passwords and tokens in URLs, bearer tokens and well-known key forms.

    The environment is read at each call: a token set after the start of the process is masked too.
    """
    for value in secret_values(environ):
        if value in text:
            text = text.replace(value, MASK)
    for pattern in (_URL_PASSWORD, _URL_PARAMETER, _BEARER):
        text = pattern.sub(rf"\g<head>{MASK}", text)
    return mask_literals(text, MASK)


def redact_value(value: Any) -> Any:
    """A plain JSON value with ``redact_text`` applied to every text in it, keys left as they are."""
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        return {key: redact_value(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [redact_value(part) for part in value]
    return value


def redact_tracebacks() -> None:
    """From now on, exceptions that nobody catches are shown without secrets."""

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.stderr.write(redact_text("".join(traceback.format_exception(kind, error, trace))))

    def show_in_thread(found: threading.ExceptHookArgs) -> None:
        if found.exc_value is not None and found.exc_type is not SystemExit:
            show(found.exc_type, found.exc_value, found.exc_traceback)

    sys.excepthook = show
    threading.excepthook = show_in_thread


def _content(path: str) -> str:
    """A small file's text, read again when it changes; nothing where there is no such file."""
    if not path.strip():
        return ""
    try:
        place = Path(path).expanduser()
        status = place.stat()
        if status.st_size > _MAX_FILE_BYTES:
            return ""
        if path not in _read or _read[path][0] != status.st_mtime_ns:
            _read[path] = (status.st_mtime_ns, place.read_text(encoding="utf-8").strip())
    except (OSError, ValueError, RuntimeError):  # no such file, not text, no home directory
        return ""
    return _read[path][1]
