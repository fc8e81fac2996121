"""Rows from files, or mixed from the sources that a config lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from rlhf.config.sources import Mixed, files_of, is_of_store, sources_of
from rlhf.data.loading import Keys
from rlhf.data.mixing import mixed
from rlhf.data.schema import Row
from rlhf.errors import DataError

RowType = TypeVar("RowType", bound=Row)


@dataclass(frozen=True)
class Part:
    """What is read at once.

    Attributes:
        dropped: name of the file that lists what is left out.
        keys: how the config calls its settings.
    """

    files: str | tuple[str, ...]
    format: str
    limit: int | None
    dropped: str
    keys: Keys


def read_mixed(
    given: Mixed,
    whole: Part,
    key: str,
    read: Callable[[Part], list[RowType]],
    look: Callable[[Sequence[RowType]], object] | None = None,
) -> list[RowType]:
    """Reads all sources, each by its own settings, and mixes them by their weights.

    Args:
        whole: what to read where files are given instead of sources; of it sources have ``keys.on_bad_row``.
        key: what the config calls ``given``.
        look: handed all rows that come from files before any is weighed, under the ids that they have in the mixture.

    Raises:
        DataError: rows do not fit, or a source's weight leaves none of them.
    """
    sources, parts = sources_of(given), [whole]
    if sources:
        parts = [
            Part(
                source.files,
                source.format,
                source.limit,
                whole.dropped.replace(".jsonl", f"_{number}.jsonl"),
                Keys(f"{key}.{number}.format", whole.keys.on_bad_row),
            )
            for number, source in enumerate(sources)
        ]
    found = [read(part) for part in parts]
    if look is not None:
        looked_at = [
            replace(row, id=f"{number}/{row.id}") if sources else row
            for number, (part, rows) in enumerate(zip(parts, found, strict=True))
            for row in (() if is_of_store(part.files) else rows)
        ]
        if looked_at:
            look(looked_at)
    if not sources:
        return found[0]
    rows = mixed([(rows, source.weight) for rows, source in zip(found, sources, strict=True)])
    for number, count in enumerate(rows_per_source(given, rows)):
        if not count:
            source = sources[number]
            names = source.files if isinstance(source.files, str) else ", ".join(source.files)
            raise DataError(
                f"{key}.{number}.weight={source.weight:g} leaves none of the {len(found[number])} rows of {names}: "
                "raise it, or leave the source out"
            )
    return rows


def rows_per_source(given: Mixed, rows: Sequence[Row]) -> list[int]:
    """How many of a mixture's rows each source has given; nothing where files are given instead of sources."""
    counts = Counter(row.id.partition("/")[0] for row in rows)
    return [counts[str(number)] for number in range(len(sources_of(given)))]


def whole_of(given: Mixed, format: str, limit: int | None, dropped: str, keys: Keys) -> Part:
    """All that is named, as one part."""
    return Part(files_of(given), format, limit, dropped, keys)
