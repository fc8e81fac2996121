"""Identifiers, digests and the one JSON spelling that every digest is taken over."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from preference_ui.errors import WordedDataError
from rlhf.errors import DataError

_lock = threading.Lock()
_last_stamp = 0


def new_id() -> str:
    """A time-ordered id (UUID version 7, RFC 9562), strictly increasing within a process.

    The 12 bits after the millisecond hold a counter, so rows created in one burst keep their order.
    """
    global _last_stamp
    with _lock:
        # Unit: 1/4096 ms. A clock that stands still or steps back must not break the order.
        stamp = max(time.time_ns() * 4096 // 1_000_000, _last_stamp + 1)
        _last_stamp = stamp
    millis, counter = divmod(stamp, 4096)
    tail = int.from_bytes(os.urandom(8), "big") & ((1 << 62) - 1)
    value = (millis & ((1 << 48) - 1)) << 80 | 0x7 << 76 | counter << 64 | 0b10 << 62 | tail
    return str(uuid.UUID(int=value))


def utc_now() -> datetime:
    """The wall clock in UTC, with time zone."""
    return datetime.now(UTC)


def canonical_json(value: Any) -> str:
    """Compact JSON with sorted keys: equal values have equal bytes. NaN and infinity are refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_text(text: str) -> str:
    """Hex sha256 of the UTF-8 bytes of ``text``."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def checked_text(text: str, what: str) -> str:
    """Return ``text`` unchanged, or refuse what a database cannot keep byte for byte.

    Raises:
        DataError: for NUL characters and lone surrogates.
    """
    if not isinstance(text, str):
        raise DataError(f"{what}: expected text, found {type(text).__name__}")
    if "\x00" in text:
        at = text.index("\0")
        raise WordedDataError(f"{what}: holds a NUL character at offset {at}; remove it", "character", offset=at)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        message = f"{what}: is not valid Unicode at offset {error.start}; re-encode it as UTF-8"
        raise WordedDataError(message, "character", offset=error.start) from error
    return text
