"""Reading annotation records from files of four kinds: one mapping per record, and where it stands."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from preference_ui.errors import DataError

Record = Mapping[str, Any]


def read_records(path: Path, *, shown: str = "", problems: list[str] | None = None) -> list[tuple[str, Record]]:
    """Rows of a JSONL, JSON, CSV or parquet file, each with its place for error messages.

    Args:
        shown: what messages call the file; default: its path.
        problems: takes lines of a JSONL file that cannot be read, and the others are returned; None: they are errors.

    Raises:
        DataError: unreadable, of an unknown kind, or a line that is not an object.
    """
    name = shown or str(path)
    if not path.exists():
        raise DataError(f"{name}: no such file")
    try:
        match path.suffix.lower():
            case ".jsonl" | ".ndjson":
                return list(_json_lines(path, name, problems))
            case ".json":
                values = json.loads(path.read_text(encoding="utf-8"))
                values = values if isinstance(values, list) else [values]
                return [(f"{name}[{i}]", _object(v, f"{name}[{i}]")) for i, v in enumerate(values)]
            case ".csv":
                with path.open(encoding="utf-8-sig", newline="") as file:
                    reader = csv.DictReader(file, strict=True)
                    return [(f"{name}:{reader.line_num}", row) for row in reader]
            case ".parquet":
                import pyarrow.parquet as pq

                return [(f"{name} row {i}", row) for i, row in enumerate(pq.read_table(path).to_pylist())]
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: is not UTF-8 at byte {error.start}; re-encode it") from error
    except (ValueError, RecursionError, csv.Error, OSError) as error:  # JSON, Arrow and numbers are ValueErrors
        raise DataError(f"{name}: cannot be read: {error}") from error
    raise DataError(f"{name}: unknown kind of file; use .jsonl, .json, .csv or .parquet")


def _json_lines(path: Path, name: str, problems: list[str] | None) -> Iterator[tuple[str, Record]]:
    # Not splitlines(): it splits inside JSON strings at separators that JSON leaves as they are.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            record = _json_record(line, where)
        except DataError as error:
            if problems is None:
                raise
            problems.append(str(error))
        else:
            yield where, record


def _json_record(line: str, where: str) -> Record:
    try:
        return _object(json.loads(line), where)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: is not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is not usable JSON: {error}") from error


def _object(value: Any, where: str) -> Record:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object, found {type(value).__name__}")
    return value
