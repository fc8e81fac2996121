"""Records out of files, one at a time: JSON lines, a JSON array, CSV, parquet.

Whatever the bytes are, reading ends in a record, a located problem of one record, or a ``DataError`` for
the whole file (when the place where the next record starts cannot be known). Memory is bounded by
``max_line_bytes``, not by the file.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rlhf.data.schema import RowError
from rlhf.errors import DataError

DEFAULT_MAX_LINE_BYTES = 8 * 2**20
_CHUNK = 1 << 16
_PREVIEW_CHARACTERS = 500
# In a CSV cell these hold JSON, because a cell cannot hold a list or a number by itself.
_CSV_LISTS = ("messages", "conversations", "instances")
_CSV_NUMBERS = ("probability", "margin", "weight")
# These hold text, or turns as a JSON list; an answer may itself be a list.
_CSV_ANSWERS = ("completion", "response", "chosen", "rejected")
_CSV_TURNS = ("prompt", *_CSV_ANSWERS)
# Without these a row is whole: an empty cell is no value.
_CSV_OPTIONAL = ("group", "system", "meta")
_JSON_TURNS = re.compile(r'\s*\[\s*\{\s*"(?:role|content)"\s*:')
_PYTHON_TURNS = re.compile(r"\s*\[\s*\{\s*'(?:role|content|from|value)'\s*:")


@dataclass(frozen=True)
class RawRecord:
    """One record as it stood in a file.

    Args:
        file: path as shown to the user.
        line: 1-based line (row number for parquet) where the record starts.
        fields: the decoded object, or None when ``problem`` says why there is none.
        problem: what is wrong with the bytes.
        preview: the beginning of the raw text.
    """

    file: str
    line: int
    fields: dict[str, Any] | None
    problem: RowError | None = None
    preview: str = ""


class _StrictJson:
    """A JSON decoder that notes duplicate keys and NaN literals, which the standard one lets through."""

    def __init__(self) -> None:
        self._problem: RowError | None = None
        self._decoder = json.JSONDecoder(object_pairs_hook=self._pairs, parse_constant=self._constant)

    def _pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            self._problem = RowError(f"{twice:.60}", "appears twice in one object", "keep one of the two")
        return fields

    def _constant(self, name: str) -> None:
        self._problem = RowError("(row)", f"holds the literal {name}, which is not JSON", "write null or a number")

    def decode(self, text: str, start: int = 0) -> tuple[Any, int, RowError | None]:
        """Decode the value that starts at ``start``.

        Returns:
            the value, the index after it, and a problem that did not stop the decoder.

        Raises:
            ValueError: the text is no JSON value (yet).
        """
        self._problem = None
        try:
            value, end = self._decoder.raw_decode(text, start)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        return value, end, self._problem


def _as_fields(value: object, problem: RowError | None) -> tuple[dict[str, Any] | None, RowError | None]:
    if problem is None and not isinstance(value, dict):
        problem = RowError("(row)", f"is a JSON {type(value).__name__}, an object is wanted", "write {...} per row")
    return (value, None) if problem is None and isinstance(value, dict) else (None, problem)


def _bounded_lines(stream: IO[bytes], max_line_bytes: int) -> Iterator[tuple[int, bytes, bool]]:
    """Yield (line number, line with its ``\\n``, is too long); an over-long line is cut to its beginning."""
    number = 0
    while line := stream.readline(max_line_bytes + 1):
        number += 1
        too_long = len(line) > max_line_bytes and not line.endswith(b"\n")
        piece = line
        while too_long and piece and not piece.endswith(b"\n"):
            piece = stream.readline(_CHUNK)
        if number == 1 and line.startswith(codecs.BOM_UTF8):
            line = line[len(codecs.BOM_UTF8) :]
        yield number, line[:_PREVIEW_CHARACTERS] if too_long else line, too_long


def _preview(raw: bytes | str) -> str:
    if isinstance(raw, bytes):
        raw = raw[: 4 * _PREVIEW_CHARACTERS].decode("utf-8", errors="replace")
    return raw[:_PREVIEW_CHARACTERS]


def _decode_json_line(line: bytes, json_decoder: _StrictJson) -> tuple[dict[str, Any] | None, RowError | None]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return None, RowError("(row)", f"is not UTF-8 at byte {error.start}", "convert the file to UTF-8")
    text = text.strip(" \t\r\n")
    try:
        value, end, problem = json_decoder.decode(text)
    except ValueError as error:
        return None, RowError("(row)", f"is not complete JSON ({error})", "write one whole JSON object per line")
    if end != len(text):
        return None, RowError("(row)", "has text after the JSON object", "write one JSON object per line")
    return _as_fields(value, problem)


def _read_jsonl(file: str, stream: IO[bytes], max_line_bytes: int) -> Iterator[RawRecord]:
    json_decoder = _StrictJson()
    for number, line, too_long in _bounded_lines(stream, max_line_bytes):
        if too_long:
            problem: RowError | None = RowError(
                "(row)", f"is a line longer than {max_line_bytes} bytes", "shorten it, or keep the rows as parquet"
            )
            yield RawRecord(file, number, None, problem, _preview(line))
        elif line.strip():
            fields, problem = _decode_json_line(line, json_decoder)
            yield RawRecord(file, number, fields, problem, _preview(line) if problem else "")


class _Window:
    """A moving window of decoded text over a JSON array file, with the line number of its start."""

    def __init__(self, file: str, stream: IO[bytes]) -> None:
        self._file = file
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text = ""
        self.line = 1
        self.at_end = False

    def fail(self, reason: str) -> DataError:
        return DataError(f"{self._file}:{self.line}: {reason}; nothing after this place can be read, repair the file")

    def grow(self) -> None:
        """Read on: at least one chunk, and at least as much again as is already waiting."""
        data = self._stream.read(max(_CHUNK, len(self.text)))
        self.at_end = not data
        try:
            self.text += self._decoder.decode(data, final=self.at_end)
        except UnicodeDecodeError:
            raise self.fail("is not UTF-8") from None

    def drop(self, count: int) -> None:
        self.line += self.text.count("\n", 0, count)
        self.text = self.text[count:]

    def next_character(self) -> str:
        """Skip white space; return the character now at the start, or '' at the end of the file."""
        while True:
            self.drop(len(self.text) - len(self.text.lstrip(" \t\r\n")))
            if self.text or self.at_end:
                return self.text[:1]
            self.grow()


def _next_element(window: _Window, json_decoder: _StrictJson, max_bytes: int) -> tuple[Any, RowError | None]:
    while True:
        try:
            value, end, problem = json_decoder.decode(window.text)
        except ValueError as error:
            if window.at_end:
                raise window.fail(f"is not complete JSON ({error})") from None
            if len(window.text) > max_bytes:
                raise window.fail(f"is broken JSON or an element longer than {max_bytes} bytes") from None
        else:
            # A number at the edge of the window may go on behind it; an object or a text cannot.
            if end < len(window.text) or window.at_end:
                window.drop(end)
                return value, problem
        window.grow()


def _read_json(file: str, stream: IO[bytes], max_line_bytes: int) -> Iterator[RawRecord]:
    window = _Window(file, stream)
    opening = window.next_character()
    if opening == "{":  # JSON lines under a .json name, as many data sets are published
        stream.seek(0)
        yield from _read_jsonl(file, stream, max_line_bytes)
        return
    if opening != "[":
        if opening:
            raise window.fail("does not start with '[' (an array of rows) or '{' (one object per line)")
        return
    window.drop(1)
    json_decoder = _StrictJson()
    first = True
    while (character := window.next_character()) != "]":
        if not first:
            if character != ",":
                raise window.fail("has no ',' or ']' after a row (is the file cut off?)")
            window.drop(1)
            window.next_character()
        first = False
        line = window.line
        preview = window.text[:_PREVIEW_CHARACTERS]
        fields, problem = _as_fields(*_next_element(window, json_decoder, max_line_bytes))
        yield RawRecord(file, line, fields, problem, preview if problem else "")
    window.drop(1)
    if window.next_character():
        raise window.fail("has text after the array")


def _csv_fields(header: list[str], cells: list[str]) -> dict[str, Any]:
    if len(cells) != len(header):
        raise RowError("(row)", f"has {len(cells)} cells, the header has {len(header)}", "quote commas and line ends")
    fields: dict[str, Any] = {}
    for name, cell in zip(header, cells, strict=True):
        if any("\udc80" <= character <= "\udcff" for character in cell):
            raise RowError(name, "is not UTF-8", "convert the file to UTF-8")
        if name in _CSV_NUMBERS + _CSV_OPTIONAL and not cell.strip():
            continue
        if name == "id" and not cell:
            continue
        fields[name] = cell
        if name in _CSV_TURNS and _JSON_TURNS.match(cell):
            found = _csv_json(name, cell, or_text=True)
            fields[name] = cell if name in _CSV_ANSWERS and not _are_turns(found) else found
        elif name in _CSV_LISTS + _CSV_NUMBERS and cell.strip():
            fields[name] = _csv_json(name, cell)
        elif name in _CSV_TURNS and _PYTHON_TURNS.match(cell):
            raise _python_list(name)
    return fields


def _are_turns(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) and {"role", "content"} <= one.keys() for one in value)


def with_meta(raw: RawRecord) -> dict[str, Any] | None:
    """A record's fields with ``meta`` decoded, which is JSON in a CSV file of prompts and any column in others.

    Raises:
        RowError: it is not JSON.
    """
    meta = (raw.fields or {}).get("meta")
    if raw.fields is None or not isinstance(meta, str) or Path(raw.file).suffix.lower() != ".csv":
        return raw.fields
    return {**raw.fields, "meta": _csv_json("meta", meta)}


def _python_list(name: str) -> RowError:
    """What a table with lists in its cells often becomes when it is saved as CSV."""
    return RowError(name, "holds a list as Python prints it", "write the cell with json.dumps, or keep it as parquet")


def _csv_json(name: str, cell: str, *, or_text: bool = False) -> Any:
    try:
        value, end, problem = _StrictJson().decode(cell.strip())
    except ValueError as error:
        if _PYTHON_TURNS.match(cell):
            raise _python_list(name) from None
        raise RowError(name, f"is not JSON ({error})", "write the cell as a JSON list, object or number") from None
    if problem is not None:
        raise problem
    if end != len(cell.strip()):
        if or_text:  # words about a list
            return cell
        raise RowError(name, "has text after its JSON value", "write the cell as one JSON value")
    return value


def _read_csv(file: str, stream: IO[bytes], max_line_bytes: int) -> Iterator[RawRecord]:
    # The limit is global to the csv module; it is only ever raised, so concurrent readers cannot be hurt.
    csv.field_size_limit(max(csv.field_size_limit(), max_line_bytes))

    def lines() -> Iterator[str]:
        for number, line, too_long in _bounded_lines(stream, max_line_bytes):
            if too_long:
                raise DataError(
                    f"{file}:{number}: is a line longer than {max_line_bytes} bytes; shorten it, or keep the rows as "
                    "parquet"
                )
            yield line.decode("utf-8", errors="surrogateescape")

    reader = csv.reader(lines(), strict=True)
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise DataError(f"{file}:1: the header is not CSV ({error}); write one line of column names") from None
    if header is None:
        return
    if len(set(header)) < len(header) or not all(name.strip() for name in header):
        raise DataError(f"{file}:1: a column name is empty or appears twice; name every column once")
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
            if cells:
                yield RawRecord(file, start, _csv_fields(header, cells))
        except StopIteration:
            return
        except csv.Error as error:
            yield RawRecord(file, start, None, RowError("(row)", f"is not CSV ({error})", "check its quotes"))
        except RowError as problem:
            yield RawRecord(file, start, None, problem, _preview(",".join(cells)))


def _column_values(column: Any) -> list[Any]:
    """Values of an Arrow array; its texts where Python has no such value (nanoseconds, years beyond 9999)."""
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):
        return column.cast("string").to_pylist()


def _read_parquet(file: str, stream: IO[bytes], max_line_bytes: int) -> Iterator[RawRecord]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=256):
            columns = [_column_values(column) for column in batch.columns]
            for row in range(batch.num_rows):
                number += 1
                yield RawRecord(
                    file, number, {name: c[row] for name, c in zip(batch.schema.names, columns, strict=True)}
                )
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError, ValueError, OverflowError) as error:
        reason = str(error).split("\n")[0][:200] or type(error).__name__
        raise DataError(f"{file}:{number + 1}: is not readable parquet ({reason}); write the file again") from None


_READERS: dict[str, Callable[[str, IO[bytes], int], Iterator[RawRecord]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def read_records(path: Path, *, max_line_bytes: int = DEFAULT_MAX_LINE_BYTES) -> Iterator[RawRecord]:
    """Yield the records of one file, in order.

    Raises:
        DataError: the file is missing, of an unknown type, or broken beyond one record.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown file type '{path.suffix}'; use one of {', '.join(_READERS)}")
    try:
        with path.open("rb") as stream:
            yield from reader(str(path), stream, max_line_bytes)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path and its rights") from None
