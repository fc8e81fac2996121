"""What a file says about a prompt beside the prompt itself, in values that JSON can hold."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from uuid import UUID

from rlhf.data.schema import PromptRow

_TIMES = (datetime.date, datetime.time)  # a datetime is a date


def json_value(value: Any) -> Any:
    """A value as JSON can hold it: what has a usual text becomes that text, what has none becomes None.

    Parquet holds more than JSON does. Dates and times are written in ISO 8601, decimals, time spans and UUIDs as they
    print; NaN, by which tables say that a value is missing, infinities and bytes become None.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):  # a bool is an int
        return value
    if isinstance(value, Mapping):
        return {str(key): json_value(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(part) for part in value]
    if isinstance(value, _TIMES):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal | UUID | datetime.timedelta) else None


def about(row: PromptRow) -> dict[str, Any]:
    """What a score function is told about a row: its ``id``, and its other columns (or its ``meta`` object).

    An ``id`` within ``meta`` is hidden by the row's own, which is unique.
    """
    return {**row.meta, "id": row.id}
