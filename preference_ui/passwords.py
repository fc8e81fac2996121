"""Password hashing with scrypt (RFC 7914), from the standard library."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os

# 32 MiB and about 0.2 s per try: dear enough for a guesser, cheap enough for a small server.
_LOG_N, _R, _P = 15, 8, 3
_MAX_MEMORY = 256 * 1024 * 1024


def _derive(password: str, salt: bytes, log_n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(
        password.encode("utf-8", "surrogatepass"),
        salt=salt,
        n=2**log_n,
        r=r,
        p=p,
        maxmem=_MAX_MEMORY,
        dklen=32,
    )


def hash_password(password: str, *, log_n: int = _LOG_N, r: int = _R, p: int = _P) -> str:
    """Hash with a fresh salt; the result names its parameters, so they can be raised later."""
    salt = os.urandom(16)
    parts = [base64.b64encode(raw).decode("ascii") for raw in (salt, _derive(password, salt, log_n, r, p))]
    return f"scrypt:{log_n}:{r}:{p}:{parts[0]}:{parts[1]}"


def verify_password(password: str, stored: str | None) -> bool:
    """Compare in constant time. Without a stored hash the same work is done and the answer is False."""
    _, log_n, r, p, salt, want = (stored or _DUMMY).split(":")
    got = _derive(password, base64.b64decode(salt), int(log_n), int(r), int(p))
    return hmac.compare_digest(got, base64.b64decode(want)) and stored is not None


# Salt and digest of nothing: an unknown account costs as much time as a known one.
_DUMMY = f"scrypt:{_LOG_N}:{_R}:{_P}:{base64.b64encode(bytes(16)).decode()}:{base64.b64encode(bytes(32)).decode()}"
