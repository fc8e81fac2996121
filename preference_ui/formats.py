"""Writing preference rows to files: native JSONL and parquet, TRL, HH, and a spreadsheet that runs nothing.

JSONL is the faithful form. TRL's and HH's formats hold hard labels only, so exact ties are left out there and
counted; the spreadsheet form changes text that a spreadsheet would execute and must not be trained on.
"""

from __future__ import annotations

import csv
import io
import json
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preference_ui.errors import DataError
from preference_ui.ids import canonical_json
from rlhf.data.schema import Message, PreferenceRow

FORMATS = ("jsonl", "parquet", "trl", "hh", "csv")
_FORMULA_STARTS = frozenset("=+-@\t\r\n|%")


@dataclass(frozen=True)
class Written:
    """What an export wrote, and how many exact ties its format could not hold."""

    path: Path
    num_rows: int
    num_ties_left_out: int


def to_jsonl(rows: Sequence[PreferenceRow]) -> bytes:
    """One canonical JSON object per line, UTF-8; equal rows give equal bytes."""
    return "".join(canonical_json(row.as_dict()) + "\n" for row in rows).encode("utf-8")


def from_jsonl(data: bytes) -> list[PreferenceRow]:
    """Read what ``to_jsonl`` wrote."""
    rows = []
    # Not splitlines(): it would also split at separators that JSON leaves unescaped inside text.
    for line in data.decode("utf-8").split("\n"):
        if line:
            values = json.loads(line)
            values["prompt"] = tuple(Message(m["role"], m["content"]) for m in values["prompt"])
            rows.append(PreferenceRow(**values))
    return rows


def trl_record(row: PreferenceRow) -> dict[str, Any]:
    """A row for TRL's reward and DPO trainers: conversational, or plain text for a prompt without turns."""
    extra = {
        "margin": row.margin,
        "weight": row.weight,
        "probability": row.probability,
        "group": row.group,
        "id": row.id,
    }
    if row.prompt[0].role == "text":
        return {"prompt": row.prompt[0].content, "chosen": row.chosen, "rejected": row.rejected} | extra
    return {
        "prompt": [m.as_dict() for m in row.prompt],
        "chosen": [{"role": "assistant", "content": row.chosen}],
        "rejected": [{"role": "assistant", "content": row.rejected}],
    } | extra


_HH_NAMES = {"user": "Human", "assistant": "Assistant"}


def hh_record(row: PreferenceRow) -> dict[str, str]:
    """A row as two transcripts.

    Raises:
        DataError: a system turn, or text that itself looks like a turn, which a transcript cannot express.
    """
    turns = []
    for message in row.prompt:
        name = _HH_NAMES.get("user" if message.role == "text" else message.role)
        if name is None:
            raise DataError(f"row {row.id}: the HH format has no {message.role} turn; export jsonl or trl")
        turns.append((name, message.content))
    for text in (*[t for _, t in turns], row.chosen, row.rejected):
        if "\n\nHuman:" in text or "\n\nAssistant:" in text:
            raise DataError(f"row {row.id}: its text looks like an HH turn; export jsonl or trl")
    head = "".join(f"\n\n{name}: {text}" for name, text in turns) + "\n\nAssistant: "
    return {"chosen": head + row.chosen, "rejected": head + row.rejected}


def guard_cell(text: str) -> str:
    """Make a text inert in a spreadsheet: what could start a formula gets a leading apostrophe.

    Looks past spaces and invisible characters, and through full-width forms, as spreadsheets do.
    """
    for character in text:
        folded = unicodedata.normalize("NFKC", character)
        if character in _FORMULA_STARTS or (folded and folded[0] in _FORMULA_STARTS):
            return "'" + text
        if not (character.isspace() or folded.isspace() or unicodedata.category(character) in ("Cf", "Cc")):
            return text
    return text


def to_csv(rows: Sequence[PreferenceRow]) -> bytes:
    """A spreadsheet for reading, with a byte order mark so that every spreadsheet sees UTF-8."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(["id", "prompt", "chosen", "rejected", "probability", "margin", "weight", "group"])
    for row in rows:
        prompt = "\n\n".join(f"{m.role}: {m.content}" for m in row.prompt)
        texts = [guard_cell(t) for t in (row.id, prompt, row.chosen, row.rejected)]
        writer.writerow([*texts, row.probability, row.margin, row.weight, guard_cell(row.group)])
    return ("\ufeff" + buffer.getvalue()).encode("utf-8")


def to_parquet(rows: Sequence[PreferenceRow]) -> bytes:
    """A parquet table with the fields of ``PreferenceRow``; the prompt is a list of role and content."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    message = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    number = pa.float64()
    schema = pa.schema([
        ("id", pa.string()), ("prompt", message), ("chosen", pa.string()), ("rejected", pa.string()),
        ("probability", number), ("margin", number), ("weight", number), ("group", pa.string()),
    ])  # fmt: skip
    table = pa.Table.from_pylist([row.as_dict() for row in rows], schema=schema)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _lines(records: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode("utf-8")


def encode(rows: Sequence[PreferenceRow], file_format: str) -> tuple[bytes, int]:
    """The file's bytes in a format of ``FORMATS``, and the number of rows it holds."""
    hard = [row for row in rows if row.probability != 0.5]
    match file_format:
        case "jsonl":
            return to_jsonl(rows), len(rows)
        case "parquet":
            return to_parquet(rows), len(rows)
        case "csv":
            return to_csv(rows), len(rows)
        case "trl":
            return _lines([trl_record(row) for row in hard]), len(hard)
        case "hh":
            return _lines([dict(hh_record(row)) for row in hard]), len(hard)
    raise DataError(f"format {file_format!r} is not one of {', '.join(FORMATS)}")


def write_file(path: Path, data: bytes) -> None:
    """Write durably and in one step: the name appears with the whole content or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_preferences(rows: Sequence[PreferenceRow], path: str | Path, file_format: str = "jsonl") -> Written:
    """Write rows to a file.

    Raises:
        DataError: an unknown format, or text that the format cannot express.
    """
    data, count = encode(rows, file_format)
    write_file(Path(path), data)
    return Written(Path(path), count, len(rows) - count)
