"""Errors of the preference store; each message says what to do next."""

from __future__ import annotations

from rlhf.errors import ConfigError, DataError, RlhfError


class Worded(RlhfError):
    """An error that a page can say in its reader's language.

    Attributes:
        key: of the catalogue, below ``lead.refused.``.
        values: what to fill in; ``field`` is the name of a setting.
    """

    def __init__(self, text: str, key: str, **values: object) -> None:
        super().__init__(text)
        self.key, self.values = key, values


class WordedConfigError(Worded, ConfigError):
    """A ``ConfigError`` in words."""


class WordedDataError(Worded, DataError):
    """A ``DataError`` in words."""


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


class OtherGroup(LeaseError):
    """A task that somebody wants back is for a group that this person no longer has."""


class StaleGuideline(DataError):
    """A new guideline was written from a version that is no longer in force; nothing was published.

    Args:
        version: the one in force.
        based_on: the one it was written from.
    """

    def __init__(self, version: int, based_on: int) -> None:
        super().__init__(version, based_on)
        self.version, self.based_on = version, based_on

    def __str__(self) -> str:
        return (
            f"version {self.version} of the guidelines is in force now, and this text starts from version "
            f"{self.based_on}; load it again and put the change into it"
        )


class AlreadyDecided(DataError):
    """Somebody else has ruled on an item meanwhile; nothing was stored.

    Args:
        handle: who.
    """

    def __init__(self, handle: str) -> None:
        super().__init__(handle)
        self.handle = handle

    def __str__(self) -> str:
        return f"{self.handle} has decided this item meanwhile; look at it again"


class StaleAccount(DataError):
    """An account was changed by somebody else after the caller looked at it; nothing was stored.

    Args:
        handle: whose account.
    """

    def __init__(self, handle: str) -> None:
        super().__init__(handle)
        self.handle = handle

    def __str__(self) -> str:
        return f"the account {self.handle!r} was changed meanwhile; look at it again"


class StaleItem(DataError):
    """An item was changed by somebody else after the caller looked at it; nothing was stored."""

    def __str__(self) -> str:
        return "the item was changed meanwhile; look at it again"


class StaleSettings(DataError):
    """A project's settings were changed by somebody else after the caller looked at them; nothing was stored."""

    def __str__(self) -> str:
        return "the project's settings were changed meanwhile; load them again and put the change into them"


class StaleVote(DataError):
    """A vote was changed or taken back after the caller looked at it; nothing was stored."""

    def __str__(self) -> str:
        return "a vote that should be set aside was changed meanwhile; look at it again"


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
    "AlreadyDecided",
    "AuthError",
    "ConfigError",
    "DataError",
    "FrozenAnswer",
    "LateAnswer",
    "LeaseError",
    "LockedOut",
    "OtherGroup",
    "RlhfError",
    "StaleAccount",
    "StaleGuideline",
    "StaleItem",
    "StaleSettings",
    "StaleVote",
    "StoreError",
    "TaskTaken",
    "VoteConflict",
    "Worded",
    "WordedConfigError",
    "WordedDataError",
]
