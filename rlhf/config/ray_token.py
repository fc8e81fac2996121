"""Ray's token file: where it is, making it, keeping it private. A token is a password to run code on a cluster."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
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


def create_token() -> Path:
    """Makes a token file with mode 0600 in a directory with mode 0700 unless there is a token already.

    Of several processes that do so at once one makes the token, and all find the same: Ray itself would let each
    write its own, and the runtimes that started with the earlier ones would refuse their own workers.

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
        # private from the first byte on, and whole from the moment it has its name
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        made = Path(name)
        try:
            with os.fdopen(descriptor, "w") as handle:
                handle.write(secrets.token_hex(32))
                handle.flush()
                os.fsync(handle.fileno())
            _put(made, path)
        finally:
            made.unlink(missing_ok=True)
    except OSError as error:
        raise AuthError(f"the token file {path} cannot be made: {error}; set {PATH_VARIABLE}") from None
    return path


def _put(made: Path, path: Path) -> None:
    """Gives a new token its name, unless another process was first; an empty file is no token."""
    try:
        os.link(made, path)
    except FileExistsError:
        if path.stat().st_size == 0:
            made.replace(path)


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
