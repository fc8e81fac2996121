"""Ray's token authentication: required everywhere, switched on before ray is imported."""

from __future__ import annotations

import os

from rlhf.config.ray_token import MODE_VARIABLE, TOKEN_VARIABLE, create_token, fix_token_mode, has_token, token_path
from rlhf.errors import AuthError

__all__ = ["create_token", "enable_token_auth", "require_token_mode"]


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
