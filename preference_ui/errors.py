"""Errors of the preference store; each message says what to do next."""

from __future__ import annotations

from rlhf.errors import ConfigError, DataError, RlhfError


class StoreError(RlhfError):
    """The store cannot be opened, migrated or trusted."""

    exit_code = 4


class LeaseError(RlhfError):
    """A write names a lease that its caller does not hold, or that no longer accepts the write."""

    exit_code = 2


class TooSoon(LeaseError):
    """A vote came sooner after its claim than the project allows; the same vote may be sent again later."""


class VoteConflict(LeaseError):
    """Another vote was already stored for the same lease and revision; nothing was overwritten."""


class FrozenAnswer(LeaseError):
    """An answer is part of a frozen dataset and stays as it is."""


class LateAnswer(LeaseError):
    """An answer came when its task was complete without it: it can be changed, not taken back."""


class TaskTaken(LeaseError):
    """A skipped task has no room left for who skipped it."""


class GenerationError(RlhfError):
    """The policy that should write candidates cannot be loaded, died, or did not answer in time."""

    exit_code = 3


class AuthError(RlhfError):
    """A login, a session or a role does not allow the action."""

    exit_code = 6


class LockedOut(AuthError):
    """Too many failed logins.

    Args:
        retry_after_seconds: how long until the next attempt is looked at.
    """

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__(retry_after_seconds)
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        return f"too many failed logins; try again in {self.retry_after_seconds:.0f} seconds"


__all__ = [
    "AuthError",
    "ConfigError",
    "DataError",
    "FrozenAnswer",
    "LateAnswer",
    "LeaseError",
    "LockedOut",
    "RlhfError",
    "StoreError",
    "TaskTaken",
    "VoteConflict",
]
