"""Rows out of files: find the files, detect the format, check every record, account for each one refused."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from rlhf.data.formats import FORMATS, Example, Format, Kind
from rlhf.data.meta import json_value
from rlhf.data.reading import DEFAULT_MAX_LINE_BYTES, RawRecord, read_records, with_meta
from rlhf.data.schema import DemonstrationRow, Message, PreferenceRow, PromptRow, Row, RowError, check_text
from rlhf.errors import ConfigError, DataError

OnBadRow = Literal["refuse", "drop"]
Paths = str | Path | Sequence[str | Path]
RowType = TypeVar("RowType", bound=Row)

_DETECTION_ROWS = 50
_DETECTION_READS = 1000
_SHOWN_PROBLEMS = 50
_FILE_STEP = 1 << 40  # more lines than any file has
_PREFERENCE_NUMBERS = ("probability", "margin", "weight")


@dataclass(frozen=True)
class Keys:
    """What the caller's user calls two of the arguments, for the advice in messages.

    Args:
        format: e.g. ``"data.format"``; empty: the format cannot be named.
        on_bad_row: e.g. ``"data.on_bad_row"``.
    """

    format: str = "format"
    on_bad_row: str = "on_bad_row"

    def name_one(self, otherwise: str) -> str:
        """Advice to name a format, where that can be done."""
        return f"name one with {self.format}=..." if self.format else otherwise


_ARGUMENTS = Keys()


def load_demonstrations(
    paths: Paths,
    *,
    format: str = "auto",
    on_bad_row: OnBadRow = "refuse",
    dropped_path: str | Path | None = None,
    limit: int | None = None,
    max_line_bytes: int = DEFAULT_MAX_LINE_BYTES,
    keys: Keys = _ARGUMENTS,
) -> list[DemonstrationRow]:
    """Read conversations to imitate.

    Args:
        paths: files or glob patterns; .jsonl, .json, .csv, .parquet.
        format: a name in ``formats.FORMATS``, or ``"auto"`` to detect it per file. A preference format
            must be named; then the chosen response is the one imitated.
        on_bad_row: ``"refuse"`` raises with every bad row listed; ``"drop"`` writes them to ``dropped_path``.
        dropped_path: JSONL file of the dropped rows, written anew; needed with ``"drop"``.
        limit: stop after this many good rows.
        max_line_bytes: longest line or array element that is read.
        keys: what the user calls ``format`` and ``on_bad_row``.

    Raises:
        DataError: a row does not fit, a file cannot be read, the format is unclear, or nothing is left.
        ConfigError: an argument is wrong.
    """

    def build(row_id: str, example: Example, record: dict[str, Any]) -> DemonstrationRow:
        response = example.completion if example.completion is not None else example.chosen
        if response is None:
            raise RowError("(row)", "has no response to imitate", "add one, or use the file as prompts")
        return DemonstrationRow(row_id, (*example.prompt, Message("assistant", response)))

    loader = _Loader("demonstration", format, on_bad_row, dropped_path, limit, max_line_bytes, keys)
    return loader.load(paths, build)


def load_preferences(
    paths: Paths,
    *,
    format: str = "auto",
    on_bad_row: OnBadRow = "refuse",
    dropped_path: str | Path | None = None,
    limit: int | None = None,
    max_line_bytes: int = DEFAULT_MAX_LINE_BYTES,
    keys: Keys = _ARGUMENTS,
) -> list[PreferenceRow]:
    """Read pairs of a better and a worse response; optional fields: probability, margin, weight, group.

    Arguments and errors as in ``load_demonstrations``.
    """

    def build(row_id: str, example: Example, record: dict[str, Any]) -> PreferenceRow:
        if example.chosen is None or example.rejected is None:
            raise RowError("(row)", "has no pair of responses", "add 'chosen' and 'rejected'")
        if example.chosen == example.rejected:
            raise RowError("chosen", "equals 'rejected'", "remove the row or correct one of the two")
        _refuse_misspelt(record)
        extras = {name: record[name] for name in _PREFERENCE_NUMBERS if record.get(name) is not None}
        if record.get("group") is not None:
            extras["group"] = check_text(record["group"], "group")
        return PreferenceRow(row_id, example.prompt, example.chosen, example.rejected, **extras)

    loader = _Loader("preference", format, on_bad_row, dropped_path, limit, max_line_bytes, keys)
    return loader.load(paths, build)


def load_prompts(
    paths: Paths,
    *,
    format: str = "auto",
    on_bad_row: OnBadRow = "refuse",
    dropped_path: str | Path | None = None,
    limit: int | None = None,
    max_line_bytes: int = DEFAULT_MAX_LINE_BYTES,
    keys: Keys = _ARGUMENTS,
) -> list[PromptRow]:
    """Read prompts; demonstration and preference files serve too, with their answers left out.

    The fields that do not make the prompt become the row's ``meta`` (or the field ``meta`` does, when it
    is there), so that a score function can find a reference answer; a value that JSON cannot hold is written
    as ``json_value`` says. Arguments and errors as in ``load_demonstrations``.
    """

    def build(row_id: str, example: Example, record: dict[str, Any]) -> PromptRow:
        known = {*example.used, "id", "meta"}
        meta = record.get("meta")
        if meta is None:
            meta = {name: value for name, value in record.items() if name not in known}
        try:
            return PromptRow(row_id, example.prompt, meta)
        except RowError as error:
            if error.field != "meta" or not isinstance(meta, Mapping):
                raise
        try:
            return PromptRow(row_id, example.prompt, json_value(meta))
        except RecursionError:
            raise RowError("meta", "is nested too deeply", "leave out the field that is") from None

    loader = _Loader("prompt", format, on_bad_row, dropped_path, limit, max_line_bytes, keys)
    return loader.load(paths, build)


def find_files(paths: Paths) -> list[Path]:
    """Return the files that paths and glob patterns name, each once, patterns in sorted order.

    Raises:
        DataError: a path or pattern names no file.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise DataError("no data file is given; name at least one path")
    found: dict[Path, None] = {}
    for pattern in map(str, given):
        if "\0" in pattern or not pattern:
            raise DataError(f"{pattern!r}: is no path; name a file or a glob pattern")
        # A file whose own name holds brackets is that file, not a pattern.
        matches = [Path(pattern)] if Path(pattern).is_file() else _expand(Path(pattern))
        files = [match for match in matches if match.is_file()]
        if not files:
            folder = Path(pattern).is_dir()
            what = "is a folder, name its files" if folder else "names no file, check the path"
            raise DataError(f"{pattern}: {what} (a glob pattern such as 'data/*.jsonl' is allowed)")
        found.update(dict.fromkeys(files))
    return list(found)


def _expand(pattern: Path) -> list[Path]:
    root = Path(pattern.anchor)
    relative = pattern.relative_to(root) if pattern.anchor else pattern
    try:
        return sorted(root.glob(str(relative)))
    except (ValueError, OSError) as error:
        raise DataError(f"{pattern}: is no glob pattern ({error}); '**' must stand alone between slashes") from None


def detect_format(records: Sequence[dict[str, Any]], kind: Kind, file: str, keys: Keys = _ARGUMENTS) -> Format:
    """Return the one format that the fields of the first records fit best.

    Raises:
        DataError: no format fits, or several fit equally well; the message lists the candidates.
    """
    usable = [form for form in FORMATS.values() if kind in form.kinds]
    counts = {form.name: sum(form.matches(record, kind) for record in records) for form in usable}
    best = max(counts.values())
    names = [name for name, count in counts.items() if count == best]
    if best and len(names) == 1:
        return FORMATS[names[0]]
    seen = ", ".join(sorted({str(name)[:40] for record in records for name in record})[:20])
    if best:
        raise DataError(
            f"{file}: the format is ambiguous: {' and '.join(names)} both fit the fields ({seen}); "
            f"{keys.name_one('leave the fields of one of them')}"
        )
    known = "; ".join(f"{form.name}: {form.fields}" for form in usable)
    raise DataError(
        f"{file}: no known {kind} format fits the fields ({seen}); rename the fields to one of: {known}"
        f"{f'; or name a format with {keys.format}=...' if keys.format else ''}"
    )


def _refuse_misspelt(record: dict[str, Any]) -> None:
    optional = (*_PREFERENCE_NUMBERS, "group")
    for name in record:
        close = [] if name in optional else difflib.get_close_matches(str(name), optional, n=1, cutoff=0.85)
        if close and close[0] not in record:
            raise RowError(f"{name:.60}", f"is not known; '{close[0]}' is", "rename it")


def _preview(fields: dict[str, Any] | None) -> str:
    try:
        return json.dumps(fields, default=repr)[:500]
    except (RecursionError, TypeError, ValueError):
        return "(cannot be shown)"


class _Loader:
    """One load: holds the settings and accounts for every record."""

    def __init__(
        self,
        kind: Kind,
        format: str,
        on_bad_row: str,
        dropped_path: str | Path | None,
        limit: int | None,
        max_line_bytes: int,
        keys: Keys,
    ) -> None:
        if format != "auto" and format not in FORMATS:
            raise ConfigError(f"{keys.format}={format!r} is not known; use 'auto' or one of {', '.join(FORMATS)}")
        if on_bad_row not in ("refuse", "drop"):
            raise ConfigError(f"{keys.on_bad_row}={on_bad_row!r} is not known; use 'refuse' or 'drop'")
        if on_bad_row == "drop" and dropped_path is None:
            raise ConfigError("on_bad_row='drop' needs dropped_path, so that no row vanishes without a trace")
        if limit is not None and limit < 1:
            raise ConfigError(f"limit={limit} leaves no row; use a positive number or none")
        self._kind = kind
        self._format = None if format == "auto" else FORMATS[format]
        self._dropped_path = Path(dropped_path) if on_bad_row == "drop" and dropped_path is not None else None
        self._limit = limit
        self._max_line_bytes = max_line_bytes
        self._keys = keys
        self._places: dict[str, int] = {}  # row id -> line where it was first seen, files as multiples of _FILE_STEP
        self._files: list[str] = []
        self._problems: list[str] = []
        self._reasons: Counter[str] = Counter()
        self._records_read = 0

    def load(self, paths: Paths, build: Callable[[str, Example, dict[str, Any]], RowType]) -> list[RowType]:
        files = find_files(paths)
        if self._dropped_path is None:
            rows = self._rows(files, build, None)
        else:
            try:
                self._dropped_path.parent.mkdir(parents=True, exist_ok=True)
                with self._dropped_path.open("w", encoding="utf-8") as sink:
                    rows = self._rows(files, build, sink)
            except OSError as error:
                raise DataError(f"{self._dropped_path}: cannot be written ({error.strerror})") from None
        self._refuse_bad_rows()
        if not rows:
            raise DataError(self._why_empty(files))
        return rows

    def _rows(
        self,
        files: list[Path],
        build: Callable[[str, Example, dict[str, Any]], RowType],
        sink: IO[str] | None,
    ) -> list[RowType]:
        rows: list[RowType] = []
        names = Counter(file.name for file in files)
        for file in files:
            label = file.name if names[file.name] == 1 else str(file)
            form, records = self._with_format(file)
            for raw in records:
                self._records_read += 1
                try:
                    rows.append(self._row(raw, form, label, build))
                except RowError as error:
                    self._note(raw, error, sink)
                if len(rows) == self._limit:
                    return rows
        return rows

    def _with_format(self, file: Path) -> tuple[Format | None, Iterator[RawRecord]]:
        """Pair a file's records with its format; None when no record of the file is readable."""
        records = read_records(file, max_line_bytes=self._max_line_bytes)
        if self._format is not None:
            return self._format, records
        head: list[RawRecord] = []
        readable: list[dict[str, Any]] = []
        for raw in records:
            head.append(raw)
            if raw.fields is not None:
                readable.append(raw.fields)
            if len(readable) == _DETECTION_ROWS or len(head) == _DETECTION_READS:
                break
        form = detect_format(readable, self._kind, str(file), self._keys) if readable else None
        return form, chain(head, records)

    def _row(
        self,
        raw: RawRecord,
        form: Format | None,
        label: str,
        build: Callable[[str, Example, dict[str, Any]], RowType],
    ) -> RowType:
        if raw.problem is not None:
            raise raw.problem
        fields = with_meta(raw) if self._kind == "prompt" else raw.fields
        if fields is None or form is None:
            raise RowError("(row)", "has no known format", self._keys.name_one("correct the first rows"))
        if not self._files or self._files[-1] != raw.file:
            self._files.append(raw.file)
        row_id = self._id(fields, f"{label}:{raw.line}")
        if row_id.isdecimal() and self._is_of_another_file(row_id):
            row_id = f"{label}:{row_id}"  # a number names a row of its own file alone
        row = build(row_id, form.parse(fields), fields)
        if row_id in self._places:
            file, line = divmod(self._places[row_id], _FILE_STEP)
            raise RowError("id", f"{row_id!r:.80} is taken by {self._files[file]}:{line}", "make ids unique")
        self._places[row_id] = (len(self._files) - 1) * _FILE_STEP + raw.line
        return row

    def _is_of_another_file(self, row_id: str) -> bool:
        place = self._places.get(row_id)
        return place is not None and place // _FILE_STEP != len(self._files) - 1

    @staticmethod
    def _id(record: dict[str, Any], default: str) -> str:
        value = record.get("id")
        if value is None:
            return default
        # Numbered rows are common; a number names a row as well as its digits do.
        is_number = isinstance(value, int) and not isinstance(value, bool)
        return str(value) if is_number else check_text(value, "id")

    def _note(self, raw: RawRecord, error: RowError, sink: IO[str] | None) -> None:
        reason = "id is taken or no text" if error.field == "id" else f"{error.field} {error.reason}"
        self._reasons[reason] += 1
        if len(self._problems) < _SHOWN_PROBLEMS:
            self._problems.append(f"{raw.file}:{raw.line}: {error}")
        if sink is not None:
            preview = raw.preview or _preview(raw.fields)
            entry = {"file": raw.file, "line": raw.line, "field": error.field, "reason": error.reason}
            sink.write(json.dumps({**entry, "remedy": error.remedy, "row": preview}) + "\n")

    def _refuse_bad_rows(self) -> None:
        total = sum(self._reasons.values())
        if self._dropped_path is not None or not total:
            return
        more = f"\n... and {total - len(self._problems)} more" if total > len(self._problems) else ""
        raise DataError(
            f"{total} of {self._records_read} rows do not fit:\n" + "\n".join(self._problems) + more + "\n"
            f"Correct them, or go on without them with {self._keys.on_bad_row}=drop."
        )

    def _why_empty(self, files: list[Path]) -> str:
        named = ", ".join(str(file) for file in files[:5]) + (", ..." if len(files) > 5 else "")
        if not self._records_read:
            return f"{named}: no row at all; the files are empty"
        counts = "\n".join(f"{count} x {reason}" for reason, count in self._reasons.most_common(20))
        return f"{named}: none of {self._records_read} rows is left; they were removed because:\n{counts}"
