"""What a record's fields mean: each format turns a record into an ``Example``, or names the wrong field."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlhf.data.schema import Message, RowError, check_text, describe

Kind = Literal["demonstration", "preference", "prompt"]
Record = Mapping[str, Any]

_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


@dataclass(frozen=True)
class Example:
    """What one record says, whatever its format.

    Args:
        prompt: the turns before the answer.
        completion: the answer to imitate, where there is one.
        chosen: the better of two answers, where there are two.
        rejected: the other one.
        used: names of the fields that hold the prompt; the rest is meta data of a prompt.
    """

    prompt: tuple[Message, ...]
    completion: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    used: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """A named format.

    Args:
        name: what a user writes as ``format=``.
        kinds: the kinds of rows that it is detected for.
        fields: its fields, for messages to the user.
        matches: whether a record looks like it, for a kind.
        parse: the record's meaning; raises RowError.
    """

    name: str
    kinds: tuple[Kind, ...]
    fields: str
    matches: Callable[[Record, Kind], bool]
    parse: Callable[[Record], Example]


def _required(record: Record, name: str) -> Any:
    if name not in record:
        raise RowError(name, "is missing", "add it, or name another format")
    return record[name]


def _list_of(record: Record, name: str) -> list[Any]:
    value = _required(record, name)
    if not isinstance(value, list) or not value:
        what = "is an empty list" if value == [] else f"is {type(value).__name__}"
        raise RowError(name, f"{what}, a list with at least one entry is wanted", "correct the field")
    return value


def _message(role: object, content: object, field: str, content_name: str) -> Message:
    text = check_text(content, f"{field}.{content_name}")
    try:
        return Message(role, text)  # type: ignore[arg-type]  # checked by Message itself
    except RowError as error:
        raise RowError(f"{field}.{error.field}", error.reason, error.remedy) from None


def _turns(value: Sequence[Any], field: str) -> tuple[Message, ...]:
    turns = []
    for index, turn in enumerate(value):
        where = f"{field}[{index}]"
        if not isinstance(turn, Mapping):
            raise RowError(where, f"is {type(turn).__name__}", 'write {"role": ..., "content": ...}')
        turns.append(_message(_required_in(turn, "role", where), turn.get("content"), where, "content"))
    return tuple(turns)


def _required_in(turn: Record, name: str, where: str) -> Any:
    if name not in turn:
        raise RowError(f"{where}.{name}", "is missing", "add it")
    return turn[name]


def _prompt_value(record: Record, name: str) -> tuple[Message, ...]:
    value = _required(record, name)
    if isinstance(value, list):
        return _turns(_list_of(record, name), name)
    return (Message("text", check_text(value, name)),)


def _answer(turns: tuple[Message, ...], field: str) -> str:
    if len(turns) != 1 or turns[0].role != "assistant":
        roles = [turn.role for turn in turns]
        raise RowError(field, f"has the turns {roles!r:.80} after the prompt", "leave exactly one assistant turn")
    return turns[0].content


def _parse_messages(record: Record) -> Example:
    turns = _turns(_list_of(record, "messages"), "messages")
    return _split_last(turns, "messages", ("messages",))


def _split_last(turns: tuple[Message, ...], field: str, used: tuple[str, ...]) -> Example:
    if turns[-1].role != "assistant":
        return Example(turns, used=used)
    if len(turns) == 1:
        raise RowError(field, "has only an assistant turn", "add the turn that it answers")
    return Example(turns[:-1], completion=turns[-1].content, used=used)


def _parse_prompt_completion(record: Record) -> Example:
    name = "response" if "response" in record and "completion" not in record else "completion"
    if "response" in record and "completion" in record:
        raise RowError("completion", "stands beside 'response'", "keep one of the two")
    prompt, value = _prompt_value(record, "prompt"), _required(record, name)
    if isinstance(value, list):
        value = _answer(_turns(_list_of(record, name), name), name)
    return Example(prompt, completion=check_text(value, name), used=("prompt", name))


def _parse_prompt(record: Record) -> Example:
    name = "text" if "text" in record and "prompt" not in record else "prompt"
    prompt = _prompt_value(record, name)
    return Example(prompt, used=(name,))


def _instruction(record: Record, extra: object, extra_name: str) -> tuple[Message, ...]:
    text = check_text(_required(record, "instruction"), "instruction")
    if extra is None or extra == "":
        return (Message("user", text),)
    if not isinstance(extra, str):
        raise RowError(extra_name, f"is {type(extra).__name__}, text is wanted", "write it as a JSON string")
    return (Message("user", f"{text}\n\n{check_text(extra, extra_name)}" if extra.strip() else text),)


def _parse_alpaca(record: Record) -> Example:
    prompt = _instruction(record, record.get("input"), "input")
    output = record.get("output")
    completion = check_text(output, "output") if "output" in record else None
    return Example(prompt, completion=completion, used=("instruction", "input"))


def _parse_question_answer(record: Record) -> Example:
    """Read e.g. a row of GSM8K (arXiv:2110.14168); of a prompt the answer is meta data, whatever it is."""
    answer = record.get("answer")
    completion = answer if isinstance(answer, str) and answer.strip() else None
    prompt = (Message("user", check_text(_required(record, "question"), "question")),)
    return Example(prompt, completion=completion, used=("question",))


def _parse_seed_tasks(record: Record) -> Example:
    first = _list_of(record, "instances")[0]
    if not isinstance(first, Mapping):
        raise RowError("instances[0]", f"is {type(first).__name__}", 'write {"input": ..., "output": ...}')
    prompt = _instruction(record, first.get("input"), "instances[0].input")
    completion = check_text(_required_in(first, "output", "instances[0]"), "instances[0].output")
    return Example(prompt, completion=completion, used=("instruction", "instances"))


def _parse_sharegpt(record: Record) -> Example:
    turns = []
    if record.get("system"):
        turns.append(Message("system", check_text(record["system"], "system")))
    for index, turn in enumerate(_list_of(record, "conversations")):
        where = f"conversations[{index}]"
        if not isinstance(turn, Mapping):
            raise RowError(where, f"is {type(turn).__name__}", 'write {"from": ..., "value": ...}')
        sender = _required_in(turn, "from", where)
        role = _SHAREGPT_ROLES.get(sender) if isinstance(sender, str) else None
        if role is None:
            raise RowError(f"{where}.from", f"is {describe(sender)}", f"use one of {', '.join(_SHAREGPT_ROLES)}")
        turns.append(_message(role, turn.get("value"), where, "value"))
    return _split_last(tuple(turns), "conversations", ("conversations", "system"))


def _hh_turns(text: object, field: str) -> tuple[Message, ...]:
    text = check_text(text, field)
    pieces = _HH_TURN.split("\n\n" + text.lstrip())
    if len(pieces) < 3 or pieces[0]:
        raise RowError(field, "does not start with 'Human:' or 'Assistant:'", "name another format")
    names, contents = pieces[1::2], pieces[2::2]
    return tuple(
        _message(_HH_ROLES[name], content.strip(), f"{field}, turn {index + 1}", "content")
        for index, (name, content) in enumerate(zip(names, contents, strict=True))
    )


def _parse_hh(record: Record) -> Example:
    """Read a dialogue pair; the prompt is the longest common beginning that ends before an Assistant turn."""
    head = record.get("prompt")
    if head is not None:
        check_text(head, "prompt")
    if head is not None and "chosen" not in record:
        return Example(_hh_turns(re.sub(r"\s*Assistant:\s*$", "", head), "prompt"), used=("prompt",))
    texts = [check_text(_required(record, name), name) for name in ("chosen", "rejected")]
    if head is not None:
        texts = [text if text.startswith(head) else head + text for text in texts]
    chosen, rejected = _hh_turns(texts[0], "chosen"), _hh_turns(texts[1], "rejected")
    return _pair_of_dialogues(chosen, rejected, ("prompt", "chosen", "rejected"))


def _pair_of_dialogues(chosen: tuple[Message, ...], rejected: tuple[Message, ...], used: tuple[str, ...]) -> Example:
    shared = 0
    for left, right in zip(chosen, rejected, strict=False):
        if left != right:
            break
        shared += 1
    shared = min(shared, len(chosen) - 1, len(rejected) - 1)
    if shared < 1:
        raise RowError("chosen", "shares no prompt with 'rejected'", "both must answer the same turns")
    return Example(
        chosen[:shared],
        chosen=_answer(chosen[shared:], "chosen"),
        rejected=_answer(rejected[shared:], "rejected"),
        used=used,
    )


def _common_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split two texts behind their common beginning, at a word boundary, so that no word is torn."""
    shared = 0
    for left, right in zip(chosen, rejected, strict=False):
        if left != right:
            break
        shared += 1
    shared = max((i for i in range(shared) if chosen[i].isspace()), default=0)
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _parse_preference(record: Record) -> Example:
    used = ("prompt", "chosen", "rejected")
    chosen, rejected = _required(record, "chosen"), _required(record, "rejected")
    head = record.get("prompt")
    if isinstance(chosen, list) and isinstance(rejected, list):
        left = _turns(_list_of(record, "chosen"), "chosen")
        right = _turns(_list_of(record, "rejected"), "rejected")
        if head is None or (isinstance(head, str) and min(len(left), len(right)) > 1):
            example = _pair_of_dialogues(left, right, used)
            if head is not None and head not in [m.content for m in example.prompt]:
                raise RowError("prompt", "differs from the turns in 'chosen'", "leave out one of the two")
            return example
        prompt = _prompt_value(record, "prompt")
        if left[: len(prompt)] == prompt == right[: len(prompt)]:
            left, right = left[len(prompt) :], right[len(prompt) :]
        return Example(prompt, None, _answer(left, "chosen"), _answer(right, "rejected"), used)
    chosen, rejected = check_text(chosen, "chosen"), check_text(rejected, "rejected")
    if head is not None:
        return Example(_prompt_value(record, "prompt"), None, chosen, rejected, used)
    if chosen == rejected:
        raise RowError("chosen", "equals 'rejected'", "remove the row or correct one of the two")
    text, chosen, rejected = _common_text(chosen, rejected)
    if not text.strip():
        raise RowError("chosen", "shares no prompt with 'rejected'", "add the field 'prompt'")
    return Example((Message("text", text),), None, check_text(chosen, "chosen"), check_text(rejected, "rejected"), used)


def _looks_hh(record: Record) -> bool:
    first = record.get("prompt") if isinstance(record.get("prompt"), str) else record.get("chosen")
    return isinstance(first, str) and first.lstrip().startswith("Human:")


def _has(*names: str) -> Callable[[Record, Kind], bool]:
    return lambda record, kind: all(name in record for name in names)


def _matches_prompt_completion(record: Record, kind: Kind) -> bool:
    return "prompt" in record and ("completion" in record or "response" in record)


def _matches_prompt(record: Record, kind: Kind) -> bool:
    if "prompt" in record:
        return not _looks_hh(record)
    return "text" in record and not ({"instruction", "messages", "conversations", "chosen"} & set(record))


_OTHER_PROMPTS = {"prompt", "text", "instruction", "messages", "conversations", "chosen"}


def _matches_question_answer(record: Record, kind: Kind) -> bool:
    return "question" in record and "answer" in record and not _OTHER_PROMPTS & set(record)


def _matches_alpaca(record: Record, kind: Kind) -> bool:
    return "instruction" in record and ("output" in record or (kind == "prompt" and "instances" not in record))


def _matches_hh(record: Record, kind: Kind) -> bool:
    return _looks_hh(record) and (kind == "prompt" or ("chosen" in record and "rejected" in record))


def _matches_preference(record: Record, kind: Kind) -> bool:
    explicit_prompt = kind == "prompt" and "prompt" in record  # then 'prompt' says it all
    return "chosen" in record and "rejected" in record and not _looks_hh(record) and not explicit_prompt


_DP: tuple[Kind, ...] = ("demonstration", "prompt")
_PP: tuple[Kind, ...] = ("preference", "prompt")

FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format("messages", _DP, "messages=[{role, content}]", _has("messages"), _parse_messages),
        Format(
            "prompt_completion",
            ("demonstration",),
            "prompt, completion (or response)",
            _matches_prompt_completion,
            _parse_prompt_completion,
        ),
        Format("alpaca", _DP, "instruction, input, output", _matches_alpaca, _parse_alpaca),
        Format("question_answer", _DP, "question, answer", _matches_question_answer, _parse_question_answer),
        Format(
            "seed_tasks",
            _DP,
            "instruction, instances=[{input, output}]",
            _has("instruction", "instances"),
            _parse_seed_tasks,
        ),
        Format("sharegpt", _DP, "conversations=[{from, value}]", _has("conversations"), _parse_sharegpt),
        Format("hh", _PP, "chosen, rejected as 'Human: ... Assistant: ...'", _matches_hh, _parse_hh),
        Format(
            "preference",
            _PP,
            "prompt (or implicit), chosen, rejected",
            _matches_preference,
            _parse_preference,
        ),
        Format("prompt", ("prompt",), "prompt (text or turns) or text", _matches_prompt, _parse_prompt),
    )
}
