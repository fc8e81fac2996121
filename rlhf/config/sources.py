"""Data from one place, or mixed from several."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from rlhf.config.base import Files, Name, Section

STORE_PREFIX = "store:"
"""Of what names rankings in the preference store instead of files."""


class DataSource(Section):
    """One of several sources of rows."""

    files: Files
    """Files or globs (``store:PROJECT[@vN]`` among preferences)."""
    format: str = "auto"
    """Format of its rows, such as ``messages`` or ``alpaca``; ``auto`` detects it per file."""
    limit: int | None = Field(None, ge=1)
    """At most this many rows, before they are weighed."""
    weight: float = Field(1.0, gt=0, le=1000)
    """How often its rows are in the data: 2: twice, 0.5: those of half of its prompts, chosen by their hash."""


def _kind(given: Any) -> str:
    some = given if isinstance(given, list | tuple) else ()
    return "list of sources" if any(isinstance(one, dict | DataSource) for one in some) else "list of files"


Mixed = Annotated[
    Annotated[Files, Tag("list of files")] | Annotated[tuple[DataSource, ...], Tag("list of sources")],
    Discriminator(_kind),
]
"""Files, or a list of sources; told apart first, so that what is wrong is said about the one that was meant."""


def _kind_alone(given: Any) -> str:
    return _kind(given) if isinstance(given, list | tuple) else "one file"


FilesAlone = Annotated[
    Annotated[Name, Tag("one file")] | Annotated[tuple[Name, ...], Field(min_length=1), Tag("list of files")],
    Discriminator(
        _kind_alone,
        custom_error_type="list_of_sources",
        custom_error_message="is a list of sources, which only data.train and the prompts of ppo can be: name files, "
        "[a.jsonl, b.jsonl]",
    ),
]
"""``Files`` of a key that takes no mixture, which is refused in words of its own."""


def sources_of(given: Mixed) -> tuple[DataSource, ...]:
    """The sources of a list of them; none where files are given."""
    return tuple(one for one in given if isinstance(one, DataSource)) if isinstance(given, tuple) else ()


def files_of(given: Mixed) -> str | tuple[str, ...]:
    """All files that are named, from whatever source."""
    if not isinstance(given, tuple):
        return given
    found: list[str] = []
    for one in given:
        names = one.files if isinstance(one, DataSource) else one
        found += [names] if isinstance(names, str) else names
    return tuple(found)


def is_of_store(given: object) -> bool:
    """Whether rankings of the preference store are meant, and no files."""
    return isinstance(given, str) and given.startswith(STORE_PREFIX)


def why_not_listed(given: Mixed, key: str) -> str | None:
    """What is said about rankings of the store within a list of files, where they would be taken for one."""
    lists: dict[str, Mixed] = {
        f"{key}.{number}.files": source.files for number, source in enumerate(sources_of(given))
    } or {key: given}
    for where, names in lists.items():
        if isinstance(names, tuple) and any(isinstance(name, str) and is_of_store(name) for name in names):
            each = ", ".join(f"{{files: {name}}}" for name in names)
            return f"{where} lists a store: among files, and it is a source of its own: data.train=[{each}]"
    return None


def why_not_mixed(given: Mixed, key: str, beside: dict[str, object]) -> str | None:
    """What is said beside a list of sources that only files can have; None: nothing.

    Args:
        key: what the config calls ``given``.
        beside: settings by key, None where they stand at their default.
    """
    wrong = next((name for name, value in beside.items() if value is not None), None)
    if not sources_of(given) or wrong is None:
        return None
    own = wrong.rpartition(".")[2].removeprefix("prompt_")
    return f"{wrong}={beside[wrong]} has no meaning beside a list of sources: give each its own, {key}.0.{own}=..."
