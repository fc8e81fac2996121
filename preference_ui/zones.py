"""Time zones by name, for the days that people count in."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo


def find_zone(name: str) -> tzinfo | None:
    """The zone of an IANA name such as ``Europe/Copenhagen``; None where this machine knows none of that name."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return None


def zone_of(name: str) -> tzinfo:
    """``find_zone``, UTC for a name that nobody knows."""
    return find_zone(name) or UTC


def midnight(now: datetime, zone: tzinfo) -> datetime:
    """When the day of ``now`` began in a zone."""
    return now.astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0)
