"""What annotation records say: native rows, TRL and HH pairs, Open-Assistant trees."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preference_ui.errors import DataError
from preference_ui.groups import row_group
from preference_ui.projects import ItemSpec, ResponseSpec
from preference_ui.record_files import Record, read_records
from preference_ui.settings import MAX_RESPONSES
from rlhf.data.schema import Message

FORMATS = ("native", "trl", "hh", "oasst")
# What a value of an unexpected type leads to: text where a list is wanted, a list where a name is, and so on.
_WRONG_SHAPE = (AttributeError, TypeError, ValueError, IndexError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Candidate:
    """An item read from a file, with the ranking that came with it, if any.

    Attributes:
        tiers: indices into ``spec.responses``, best tier first, or None.
    """

    where: str
    spec: ItemSpec
    tiers: tuple[tuple[int, ...], ...] | None = None


@dataclass
class ReadResult:
    """What a file holds. ``left_out`` says for each record that makes no item where it is and why."""

    candidates: list[Candidate] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def detect_format(record: Record) -> str:
    """Guess the format from the fields of the first record."""
    if "message_tree_id" in record or "message_id" in record:
        return "oasst"
    if "chosen" in record and "rejected" in record:
        is_text = isinstance(record["chosen"], str)
        return "hh" if is_text and not record.get("prompt") and "\n\nHuman:" in record["chosen"] else "trl"
    return "native"


def read_candidates(path: Path, file_format: str | None = None, *, shown: str = "") -> ReadResult:
    """Read a file into items.

    Args:
        shown: what messages, and sources of pairs, call the file; default: its path.

    Raises:
        DataError: naming file, line and field.
    """
    name = shown or str(path)
    rows = read_records(path, shown=name)
    return read_rows(rows, format_of(rows, file_format, name), name)


def format_of(rows: Sequence[tuple[str, Record]], file_format: str | None, name: str) -> str:
    """The format that was asked for, or else the one of the first record.

    Raises:
        DataError: there are no records, or no such format.
    """
    if not rows:
        raise DataError(f"{name}: holds no records")
    known = file_format or detect_format(rows[0][1])
    if known not in _READERS:
        raise DataError(f"format {known!r} is not one of {', '.join(FORMATS)}")
    return known


def read_rows(rows: Sequence[tuple[str, Record]], file_format: str, name: str) -> ReadResult:
    """Items of the records of one file that ``name`` stands for in messages.

    Raises:
        DataError: naming file, line and field.
    """
    result = ReadResult()
    try:
        _READERS[file_format](rows, result)
    except KeyError as error:
        place = _first_wrong(rows, file_format, KeyError) or name
        raise DataError(f"{place}: a record lacks the field {error}; is it in the {file_format} format?") from error
    except _WRONG_SHAPE as error:
        place = _first_wrong(rows, file_format, *_WRONG_SHAPE) or name
        raise DataError(f"{place}: is not in the {file_format} format ({error})") from error
    return result


def _first_wrong(rows: Sequence[tuple[str, Record]], name: str, *kinds: type[Exception]) -> str | None:
    """Place of the first record that fails in one of these ways when it is read by itself."""
    for where, row in rows:
        try:
            _READERS[name]([(where, row)], ReadResult())
        except kinds:
            return where
        except (DataError, KeyError, *_WRONG_SHAPE):
            continue
    return None


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    """A prompt given as text, as JSON text, or as a list of turns."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("[{") and text.endswith("}]"):
            try:
                value = json.loads(text)
            except json.JSONDecodeError:
                return (Message("user", value),)
        else:
            return (Message("user", value),)
    if not isinstance(value, list) or not all(isinstance(m, dict) for m in value):
        raise DataError(f"{where}: field 'prompt' must be text or a list of turns")
    try:
        return tuple(Message(str(m["role"]), m["content"]) for m in value)
    except (KeyError, DataError) as error:
        raise DataError(f"{where}: field 'prompt': {error}") from error


def _response(value: Any, where: str) -> ResponseSpec:
    if isinstance(value, str):
        return ResponseSpec(value)
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise DataError(f"{where}: a response must be text or an object with 'text'")
    known = {"text", "run", "step", "adapter_uri", "adapter_sha256", "sampling", "num_tokens"}
    unknown = sorted(set(value) - known)
    if unknown:
        raise DataError(f"{where}: unknown response field {unknown[0]!r}; known are {', '.join(sorted(known))}")
    return ResponseSpec(**{k: v for k, v in value.items() if v is not None})


_TEXT_FIELDS = ("topic", "language", "split", "source")


def _native(rows: Sequence[tuple[str, Record]], result: ReadResult) -> None:
    """``prompt`` with ``responses``, with columns ``response_1`` ..., or one ``response`` per row."""
    grouped: dict[str, tuple[str, Record, list[Any]]] = {}
    for where, row in rows:
        if row.get("response") is not None:
            key = json.dumps(row["prompt"], sort_keys=True)
            fields = ("run", "step", "num_tokens")
            extra = {k: row[k] for k in fields if row.get(k) not in (None, "")}
            for number in ("step", "num_tokens"):
                if number in extra:
                    extra[number] = _whole(extra[number], f"{where}: field {number!r}")
            first, kept, texts = grouped.setdefault(key, (where, row, []))
            if (kept.get("group") or "") != (row.get("group") or ""):
                raise DataError(f"{where}: field 'group' is another one than at {first}, for the same prompt")
            texts.append({"text": row["response"], **extra})
            continue
        responses = row.get("responses")
        if responses is None:
            names = [f"response_{i}" for i in range(1, MAX_RESPONSES + 1)]
            responses = [row[n] for n in names if row.get(n)]
        elif isinstance(responses, str):
            try:
                responses = json.loads(responses)
            except json.JSONDecodeError as error:
                raise DataError(f"{where}: field 'responses' must hold a JSON list: {error.msg}") from error
        result.candidates.append(_native_item(where, row, responses))
    for where, row, responses in grouped.values():
        result.candidates.append(_native_item(where, row, responses))


def _whole(value: Any, what: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} must be a whole number") from error


def _finite(value: Any, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{what} must be a number") from error
    if not math.isfinite(number):
        raise DataError(f"{what} must be finite")
    return number


def _native_item(where: str, row: Record, responses: Any) -> Candidate:
    if not isinstance(responses, list) or not responses:
        raise DataError(f"{where}: has no responses; give 'responses', 'response_1' ... or 'response'")
    gold = row.get("gold_tiers")
    tiers = row.get("tiers")
    return Candidate(
        where,
        ItemSpec(
            prompt=_messages(row["prompt"], where),
            responses=tuple(_response(r, where) for r in responses),
            gold_tiers=tuple(tuple(t) for t in gold) if gold else None,
            priority=_finite(row.get("priority") or 0.0, f"{where}: field 'priority'"),
            group=_group(row, where),
            **{name: str(row.get(name) or "") for name in _TEXT_FIELDS},
        ),
        tuple(tuple(t) for t in tiers) if tiers else None,
    )


def _group(row: Record, where: str) -> str:
    return row_group(row.get("group"), f"{where}: field 'group'")


def _pair(where: str, row: Record, prompt: tuple[Message, ...], chosen: str, rejected: str, result: ReadResult) -> None:
    if chosen == rejected:
        result.left_out.append(f"{where}: both responses are the same")
        return
    # The better one stands first in the file; the page shuffles, so that gives nothing away.
    spec = ItemSpec(prompt, (ResponseSpec(chosen), ResponseSpec(rejected)), source=where, group=_group(row, where))
    result.candidates.append(Candidate(where, spec, ((0,), (1,))))


def _trl(rows: Sequence[tuple[str, Record]], result: ReadResult) -> None:
    """Explicit prompts, or whole conversations of which all but the last turn are shared."""
    for where, row in rows:
        chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
        if isinstance(chosen, str) and isinstance(rejected, str):
            if not prompt:
                raise DataError(f"{where}: plain-text pairs need a field 'prompt'")
            _pair(where, row, _messages(prompt, where), chosen, rejected, result)
            continue
        turns = [_messages(chosen, where), _messages(rejected, where)]
        head = _messages(prompt, where) if prompt else turns[0][:-1]
        if not prompt and turns[0][:-1] != turns[1][:-1]:
            raise DataError(f"{where}: chosen and rejected differ before their last turn")
        if prompt and (len(turns[0]) != 1 or len(turns[1]) != 1):
            raise DataError(f"{where}: with a prompt, chosen and rejected hold one turn each")
        _pair(where, row, head, turns[0][-1].content, turns[1][-1].content, result)


def parse_transcript(text: str, where: str) -> tuple[Message, ...]:
    """Split an HH transcript into turns.

    Raises:
        DataError: it does not start with a turn.
    """
    roles = {"Human": "user", "Assistant": "assistant"}
    messages: list[Message] = []
    marked = "\n\n" + text.strip()
    for name in roles:
        marked = marked.replace(f"\n\n{name}:", f"\x1e{name}:")
    parts = marked.split("\x1e")
    if parts[0].strip():
        raise DataError(f"{where}: the transcript must start with 'Human:'")
    for part in parts[1:]:
        name, _, content = part.partition(":")
        if content.strip():
            messages.append(Message(roles[name], content.strip()))
    return tuple(messages)


def _hh(rows: Sequence[tuple[str, Record]], result: ReadResult) -> None:
    for where, row in rows:
        chosen, rejected = (parse_transcript(row[k], f"{where}: field {k!r}") for k in ("chosen", "rejected"))
        usable = len(chosen) >= 2 and chosen[-1].role == rejected[-1].role == "assistant" if rejected else False
        if not usable or chosen[:-1] != rejected[:-1] or chosen[-2].role != "user":
            result.left_out.append(f"{where}: the two transcripts do not answer one prompt")
            continue
        _pair(where, row, chosen[:-1], chosen[-1].content, rejected[-1].content, result)


def _oasst(rows: Sequence[tuple[str, Record]], result: ReadResult) -> None:
    """Trees (``prompt`` with nested ``replies``) or flat messages linked by ``parent_id``."""
    if "message_id" in rows[0][1] and "prompt" not in rows[0][1]:
        roots = _tree_of(rows)
    else:
        roots = [(where, {"group": row.get("group"), **row["prompt"]}) for where, row in rows]
    for where, root in roots:
        group = _group(root, where)
        stack: list[tuple[Record, tuple[Message, ...]]] = [(root, ())]
        while stack:
            node, before = stack.pop()
            role = "assistant" if node.get("role") == "assistant" else "user"
            path = (*before, Message(role, node["text"]))
            replies = [r for r in node.get("replies") or [] if not r.get("deleted")]
            if role == "user":
                _siblings(where, node, path, replies, group, result)
            stack += [(reply, path) for reply in reversed(replies)]


def _tree_of(rows: Sequence[tuple[str, Record]]) -> list[tuple[str, Record]]:
    nodes: dict[str, dict[str, Any]] = {}
    for _, row in rows:
        nodes[row["message_id"]] = {**row, "role": _oasst_role(row), "replies": []}
    roots: list[tuple[str, Record]] = []
    for where, row in rows:
        parent = nodes.get(row.get("parent_id") or "")
        if parent is not None:
            parent["replies"].append(nodes[row["message_id"]])
        elif not row.get("parent_id"):
            roots.append((where, nodes[row["message_id"]]))
    return roots


def _oasst_role(row: Record) -> str:
    return "assistant" if row.get("role") == "assistant" else "user"


def _siblings(
    where: str, node: Record, path: tuple[Message, ...], replies: Sequence[Record], group: str, result: ReadResult
) -> None:
    answers = {r["text"]: r for r in replies if r.get("role") == "assistant"}
    ranked = sorted((r for r in answers.values() if r.get("rank") is not None), key=lambda r: r["rank"])
    chosen = ranked if len(ranked) >= 2 else list(answers.values())
    if len(chosen) < 2:
        return
    if len(chosen) > MAX_RESPONSES:
        result.left_out.append(f"{where}: {len(chosen) - MAX_RESPONSES} lowest of {len(chosen)} siblings")
        chosen = chosen[:MAX_RESPONSES]
    tiers: list[list[int]] = []
    for index, reply in enumerate(chosen):
        if tiers and reply.get("rank") == chosen[tiers[-1][0]].get("rank"):
            tiers[-1].append(index)
        else:
            tiers.append([index])
    spec = ItemSpec(
        path, tuple(ResponseSpec(r["text"]) for r in chosen), language=str(node.get("lang") or "")[:24], source=where,
        group=group,
    )  # fmt: skip
    result.candidates.append(Candidate(where, spec, tuple(tuple(t) for t in tiers) if len(ranked) >= 2 else None))


_READERS: dict[str, Callable[[Sequence[tuple[str, Record]], ReadResult], None]] = {
    "native": _native,
    "trl": _trl,
    "hh": _hh,
    "oasst": _oasst,
}
