"""``rlhf prefs groups``: which groups a project's tasks have, and who has them."""

from __future__ import annotations

from preference_ui.db import Store
from preference_ui.errors import DataError
from preference_ui.groups import groups_by_person, parse_groups
from preference_ui.memberships import set_groups
from preference_ui.overview import coverage_of
from preference_ui.people import Person, find_annotator, list_annotators
from preference_ui.projects import load_project
from preference_ui.tables import Opened, Place, Table

NONE = "(none)"


def group_tables(store: Store, project: str) -> list[Table]:
    """Coverage by group; no table where no task has a group."""
    with store.read() as session:
        found = coverage_of(session, load_project(session, project)).groups
    if not found:
        return []
    rows = [(name or NONE, str(g.done), str(g.needed), str(g.people)) for name, g in found.items()]
    stuck = [name for name, group in found.items() if name and group.is_stuck]
    notes = (f"nobody can take: {', '.join(stuck)}; give somebody the group with `rlhf prefs groups`",) if stuck else ()
    return [Table("groups", ("group", "votes", "asked for", "people who get it"), rows, notes)]


def prefs_groups(
    place: Place, project: str, handle: str | None = None, words: str | None = None, *, actor: str = "command line"
) -> list[Table]:
    """A project's groups and who has which; with a handle and words, give that person these groups and no others.

    Args:
        words: with commas between them; empty: none.

    Raises:
        DataError: no such person or project, or a word that is no group.
    """
    if words is not None and handle is None:
        raise DataError("--set needs the person: rlhf prefs groups PROJECT PERSON --set WORDS")
    with Opened(place) as store:
        people = list_annotators(store) if handle is None else [_person(store, handle)]
        if words is not None:
            set_groups(store, project, people[0].id, parse_groups(words), actor=actor)
        with store.read() as session:
            having = groups_by_person(session, load_project(session, project).id)
        rows = [(p.handle, p.role, ", ".join(having.get(p.id, ())) or NONE) for p in people if handle or p.id in having]
        table = Table(f"people with groups in {project}", ("person", "role", "groups"), rows)
        return [*group_tables(store, project), table]


def _person(store: Store, handle: str) -> Person:
    person = find_annotator(store, handle)
    if person is None:
        raise DataError(f"no annotator {handle!r}")
    return person
