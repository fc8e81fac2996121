"""Rows to token ids, in the driver, so that a row that does not fit stops the run before any worker starts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf.config import DataConfig
from rlhf.data.chat import ChatFormat
from rlhf.data.schema import DemonstrationRow, Message, PreferenceRow
from rlhf.errors import DataError

IGNORED = -100
TokenRow = dict[str, Any]


class LongRows:
    """Decides about rows over ``max_sequence_tokens`` and accounts for each of them.

    Args:
        section: what the config calls ``data``, for messages.
    """

    def __init__(self, data: DataConfig, dropped_path: Path | None, section: str = "data") -> None:
        self._data, self._path, self._section = data, dropped_path, section
        self.found: list[dict[str, Any]] = []

    def note(self, row_id: str, num_tokens: int, action: str) -> None:
        """Remembers one row that was refused, dropped or truncated."""
        self.found.append({"id": row_id, "num_tokens": num_tokens, "action": action})

    def settle(self, kept: int) -> dict[str, int]:
        """Refuses, or writes the account of what was dropped or cut; returns counts by action.

        Raises:
            DataError: ``data.on_long_row=refuse`` and there are long rows, or nothing is left.
        """
        limit, section = self._data.max_sequence_tokens, self._section
        refused = [row for row in self.found if row["action"] == "refuse"]
        if refused:
            longest = max(row["num_tokens"] for row in refused)
            shown = ", ".join(f"{row['id']} ({row['num_tokens']})" for row in refused[:5])
            raise DataError(
                f"{len(refused)} row(s) are longer than {section}.max_sequence_tokens={limit}: {shown}; "
                f"set {section}.max_sequence_tokens={longest}, or {section}.on_long_row=drop or truncate"
            )
        if kept == 0:
            raise DataError(
                f"no row is left: all {len(self.found)} are longer than {section}.max_sequence_tokens={limit}; raise it"
            )
        if self.found and self._path is not None:
            lines = [json.dumps(row, ensure_ascii=False) for row in self.found]
            self._path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return dict(Counter(row["action"] for row in self.found))


def encode_demonstrations(
    rows: Sequence[DemonstrationRow],
    chat: ChatFormat,
    data: DataConfig,
    dropped_path: Path | None = None,
    *,
    section: str = "data",
) -> tuple[list[TokenRow], dict[str, int]]:
    """Token ids and labels (-100 off the assistant's tokens) of demonstrations.

    ``truncate`` keeps the beginning of a conversation; a row whose assistant tokens are all cut off is dropped.

    Returns:
        Rows with ``input_ids`` and ``labels``, and how many were truncated or dropped.

    Raises:
        DataError: see ``LongRows.settle``.
    """
    limit, long_rows, encoded = data.max_sequence_tokens, LongRows(data, dropped_path, section), []
    for row in rows:
        found = chat.encode_demonstration(row)
        ids, keep = list(found.input_ids), list(found.loss_mask)
        labels = [token if flag else IGNORED for token, flag in zip(ids, keep, strict=True)]
        labels[0] = IGNORED  # nothing stands before the first token that could predict it
        if len(ids) > limit:
            labels = labels[:limit]
            cut = data.on_long_row == "truncate"
            learnable = any(label != IGNORED for label in labels)
            long_rows.note(row.id, len(ids), "drop" if cut and not learnable else data.on_long_row)
            if not (cut and learnable):
                continue
            ids = ids[:limit]
        encoded.append({"input_ids": ids, "labels": labels})
    return encoded, long_rows.settle(len(encoded))


def encode_answers(
    rows: Sequence[DemonstrationRow], chat: ChatFormat, data: DataConfig, dropped_path: Path | None = None
) -> tuple[list[list[int]], dict[str, int]]:
    """Token ids of conversations that are to be scored, each ending with the stop token of its last answer.

    ``truncate`` shortens what stands before that answer (``shortened_prompt``), never the answer.

    Returns:
        The sequences, and how many rows were truncated or dropped.

    Raises:
        DataError: see ``LongRows.settle``.
    """
    limit, long_rows = data.max_sequence_tokens, LongRows(data, dropped_path)
    encoded: list[list[int]] = []
    for row in rows:
        ids = list(chat.encode_demonstration(row).input_ids)
        if len(ids) > limit:
            answer = list(chat.encode_response(row.response))
            truncates = data.on_long_row == "truncate"
            cut = shortened_prompt(row.prompt, chat, limit - len(answer)) if truncates else None
            long_rows.note(row.id, len(ids), "drop" if truncates and cut is None else data.on_long_row)
            if cut is None:
                continue
            ids = cut + answer
        encoded.append(ids)
    return encoded, long_rows.settle(len(encoded))


def encode_preferences(
    rows: Sequence[PreferenceRow],
    chat: ChatFormat,
    data: DataConfig,
    *,
    use_margins: bool,
    weight_by_prompt: bool,
    prompt_length: bool = False,
    dropped_path: Path | None = None,
    which: str = "training",
) -> tuple[list[TokenRow], dict[str, int]]:
    """Token ids of both responses of every pair, each ending with the stop token.

    ``truncate`` shortens the prompt (``shortened_prompt``), equally for both, and never a response.

    Args:
        prompt_length: rows tell ``num_prompt_tokens``, too.
        which: what the pairs are, for messages.

    Returns:
        Rows with ``chosen_ids``, ``rejected_ids``, ``probability``, ``margin``, ``weight`` and ``group``; and how many
        were truncated or dropped. With ``weight_by_prompt`` the weights of one prompt's pairs sum to 1.
    """
    limit, long_rows = data.max_sequence_tokens, LongRows(data, dropped_path)
    encoded: list[TokenRow] = []
    for row in rows:
        prompt = list(chat.encode_prompt(row.prompt))
        chosen, rejected = list(chat.encode_response(row.chosen)), list(chat.encode_response(row.rejected))
        longest = len(prompt) + max(len(chosen), len(rejected))
        if longest > limit:
            cut = None
            if data.on_long_row == "truncate":
                cut = shortened_prompt(row.prompt, chat, limit - (longest - len(prompt)))
            lost = cut is None and data.on_long_row == "truncate"
            long_rows.note(row.id, longest, "drop" if lost else data.on_long_row)
            if cut is None:
                continue
            prompt = cut
        encoded.append(
            {
                "chosen_ids": prompt + chosen,
                "rejected_ids": prompt + rejected,
                "probability": row.probability,
                "margin": row.margin if use_margins else 0.0,
                "weight": row.weight,
                "group": row.group,
                **({"num_prompt_tokens": len(prompt)} if prompt_length else {}),
            }
        )
    counts = long_rows.settle(len(encoded))
    if weight_by_prompt:
        totals: dict[str, float] = {}
        for pair in encoded:
            totals[pair["group"]] = totals.get(pair["group"], 0.0) + pair["weight"]
        for pair in encoded:
            pair["weight"] /= totals[pair["group"]] or 1.0
    if not sum(pair["weight"] for pair in encoded) > 0:
        raise DataError(
            f"all {which} pairs have weight 0 and would count for nothing: give at least one row a positive weight"
        )
    return encoded, counts


def shortened_prompt(messages: Sequence[Message], chat: ChatFormat, room: int) -> list[int] | None:
    """Ids of the newest part of a prompt that fits, written by the chat format as any prompt is: PPO scores such only.

    The oldest exchanges are left out, whole; the last turn alone is cut at its beginning. A system message stays.

    Args:
        room: most tokens.

    Returns:
        None where not even the last turn's last character fits.
    """
    system, turns = [m for m in messages if m.role == "system"], [m for m in messages if m.role != "system"]
    for first in [at for at, turn in enumerate(turns) if turn.role != "assistant"]:
        if len(ids := chat.encode_prompt([*system, *turns[first:]])) <= room:
            return ids
    last, found = turns[-1], None
    short, long = len(last.content) - len(last.content.rstrip()) + 1, len(last.content) - 1
    while short <= long:  # how many characters of the last turn
        middle = (short + long) // 2
        ids = chat.encode_prompt([*system, replace(last, content=last.content[-middle:])])
        if len(ids) <= room:
            found, short = ids, middle + 1
        else:
            long = middle - 1
    return found
