"""Ray's token: made private, required everywhere, switched on before ray is imported."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from rlhf.errors import AuthError

MODE_VARIABLE = "RAY_AUTH_MODE"
TOKEN_VARIABLE = "RAY_AUTH_TOKEN"
PATH_VARIABLE = "RAY_AUTH_TOKEN_PATH"


def token_path() -> Path:
    """Where Ray looks for the token file."""
    return Path(os.environ.get(PATH_VARIABLE) or "~/.ray/auth_token").expanduser()


def has_token() -> bool:
    """Whether this process would find a token: in the environment or in a file that is not empty."""
    if os.environ.get(TOKEN_VARIABLE):
        return True
    path = token_path()
    try:
        return path.is_file() and path.stat().st_size > 0
    except PermissionError:
        return False


def enable_token_auth() -> None:
    """Switches token authentication on for this process and its children; call it before ``import ray``.

    Raises:
        AuthError: there is no token, or another mode was asked for: nothing here runs without a token.
    """
    require_token_mode()
    if not has_token():
        raise AuthError(
            f"no token: {TOKEN_VARIABLE} is not set and {token_path()} does not exist or is empty. Copy the head "
            f"node's token file there (scp HEAD:.ray/auth_token {token_path()}, mode 0600); on the head node "
            "itself 'python -m cluster.start head' makes one"
        )
    fix_token_mode()
    os.environ[MODE_VARIABLE] = "token"


def require_token_mode() -> None:
    """Refuses an environment that switches authentication off."""
    mode = os.environ.get(MODE_VARIABLE, "token")
    if mode != "token":
        raise AuthError(
            f"{MODE_VARIABLE}={mode}: a Ray cluster runs the code of everyone who reaches it, so only token mode is "
            f"allowed; unset {MODE_VARIABLE}"
        )


def create_token() -> Path:
    """Makes a token file with mode 0600 in a directory with mode 0700 unless there is a token already.

    Raises:
        AuthError: the file or its directory cannot be made private.
    """
    path = token_path()
    if has_token():
        fix_token_mode()
        return path
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        # exclusive and private from the first byte on: there is no moment at which others could read it
        flags = os.O_WRONLY | os.O_CREAT | (0 if path.exists() else os.O_EXCL)
        descriptor = os.open(path, flags, 0o600)
        os.fchmod(descriptor, 0o600)
        with os.fdopen(descriptor, "w") as handle:
            handle.write(secrets.token_hex(32))
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise AuthError(f"the token file {path} cannot be made: {error}; set {PATH_VARIABLE}") from None
    return path


def fix_token_mode() -> list[Path]:
    """Takes reading rights of others away from the token file; returns what was changed.

    Raises:
        AuthError: others can read the token and this user may not change that.
    """
    path = token_path()
    changed: list[Path] = []
    if not path.is_file():
        return changed
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        try:
            path.chmod(0o600)
        except PermissionError:
            raise AuthError(f"{path} can be read by others and is not yours to change: chmod 600 it") from None
        changed.append(path)
    # only Ray's own directory: a token below /etc or in a mounted secret has a parent that others need
    parent = path.parent
    if parent.name == ".ray" and stat.S_IMODE(parent.stat().st_mode) & 0o077 and parent.stat().st_uid == os.getuid():
        parent.chmod(0o700)
        changed.append(parent)
    return changed
