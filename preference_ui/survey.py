"""What a file of tasks holds, looked at before anything is stored: counts, the first tasks, and all that is wrong.

``rlhf prefs import`` stops at the first error of a file. Whoever has only the page to mend a file with sees them all at
once, in the same words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from preference_ui.db import Store
from preference_ui.errors import DataError
from preference_ui.importing import check_ranking
from preference_ui.projects import check_spec, get_project
from preference_ui.record_files import Record, read_records
from preference_ui.records import Candidate, ReadResult, format_of, read_rows
from preference_ui.settings import ProjectSettings

_LINE = re.compile(r"(?::|\[| row )(\d+)")


@dataclass
class Survey:
    """What an import of a file would store.

    Attributes:
        num_records: rows of the file that could be read.
        tasks: in the order of the file, those that do not fit left out.
        left_out: records that make no task, and why, as an import tells them.
        problems: errors by their line; an import of such a file stops at the first of them.
    """

    num_records: int = 0
    tasks: list[Candidate] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def num_gold(self) -> int:
        """Tasks that come with their answer."""
        return sum(task.spec.gold_tiers is not None for task in self.tasks)

    @property
    def num_rankings(self) -> int:
        """Tasks whose ranking an import offers to the project as a vote."""
        return sum(bool(task.tiers) and task.spec.gold_tiers is None for task in self.tasks)


def survey_file(
    store: Store, project: str, path: str | Path, *, file_format: str | None = None, shown: str = ""
) -> Survey:
    """Read a file as ``import_file`` does, store nothing, and stop at no error.

    Args:
        shown: what messages call the file; default: its path.

    Raises:
        DataError: no such project. Whatever is wrong with the file is in ``problems``.
    """
    name = shown or str(path)
    settings = get_project(store, project).settings
    found = Survey()
    try:
        rows = read_records(Path(path), shown=name, problems=found.problems)
        found.num_records = len(rows)
        if rows or not found.problems:
            result = _read(rows, format_of(rows, file_format, name), name, found.problems)
            found.left_out = result.left_out
            found.tasks = [task for task in result.candidates if _fits(task, settings, found.problems)]
    except DataError as error:
        found.problems.append(str(error))
    found.problems.sort(key=lambda text: _line_of(text, name))
    return found


def _read(rows: Sequence[tuple[str, Record]], file_format: str, name: str, problems: list[str]) -> ReadResult:
    """All items at once, or those of the records that can be read each by itself."""
    try:
        return read_rows(rows, file_format, name)
    except DataError as error:
        whole = error
    good, before = [], len(problems)
    for where, row in rows:
        try:
            read_rows([(where, row)], file_format, name)
        except DataError as error:
            problems.append(str(error))
        else:
            good.append((where, row))
    if len(problems) == before:  # each is sound, but not beside the others
        raise whole
    try:
        return read_rows(good, file_format, name) if good else ReadResult()
    except DataError as error:
        problems.append(str(error))
        return ReadResult()


def _fits(task: Candidate, settings: ProjectSettings, problems: list[str]) -> bool:
    try:
        check_spec(task.spec, task.where)
        if task.tiers and task.spec.gold_tiers is None:
            check_ranking(task, settings)
    except DataError as error:
        problems.append(str(error))
        return False
    return True


def _line_of(problem: str, name: str) -> int:
    """The line that a message begins with; 0 when it is about the whole file."""
    found = _LINE.match(problem.removeprefix(name))
    return int(found[1]) if found else 0
