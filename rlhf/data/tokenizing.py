"""Text to token ids, where only the writer of a template may produce control tokens.

A control token steers the model (begin, end, turn markers). Text that people wrote may spell one out; it
must then reach the model as the letters it consists of.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.data.schema import RowError
from rlhf.errors import ConfigError

_ANCHOR = "\n"
# Tokenizers often forget to flag such added tokens as special; nobody writes them as words.
_MARKER = re.compile(r"<\|.+\|>")


@dataclass(frozen=True)
class Piece:
    """A stretch of text; ``is_content`` marks what people or models wrote, as against the template."""

    text: str
    is_content: bool


@dataclass(frozen=True)
class Position:
    """What stands before the next piece: some tokenizers write a word differently at a start.

    Args:
        after: ``start`` of everything, a ``control`` token, or ordinary ``text``.
        strip: the control token before takes the white space that follows it.
    """

    after: str = "start"
    strip: bool = False


class TextEncoder:
    """Encodes pieces of text with one tokenizer.

    Cuts happen only at control tokens and where the caller cuts, so the ids of a text are those that the
    tokenizer itself gives, also for tokenizers that put a space before the first word.

    Args:
        tokenizer: a transformers tokenizer.
        extra_control: added tokens that are not flagged special but act as turn markers.
    """

    def __init__(self, tokenizer: Any, extra_control: Iterable[str] = ()) -> None:
        self._tokenizer = tokenizer
        added = {str(token.content): (index, token) for index, token in tokenizer.added_tokens_decoder.items()}
        names = {str(name) for name in tokenizer.all_special_tokens} | set(extra_control)
        names |= {name for name, (_, token) in added.items() if token.special or _MARKER.fullmatch(name)}
        vocabulary = tokenizer.get_vocab()
        self.control: dict[str, int] = {name: vocabulary[name] for name in sorted(names) if name in vocabulary}
        if not self.control:
            raise ConfigError("the tokenizer has no special token; give it at least an eos_token")
        self._takes_left = {name for name, (_, token) in added.items() if token.lstrip}
        self._takes_right = {name for name, (_, token) in added.items() if token.rstrip}
        self._pattern = _alternatives(self.control)
        # <unk> stands for what the vocabulary lacks; people cannot help producing it.
        self._guarded = set(self.control.values()) - {tokenizer.unk_token_id}
        self._find_word_start_rule()

    def _find_word_start_rule(self) -> None:
        """Learn where the tokenizer adds a space of its own: at the start only, after control tokens too,
        or never."""
        self._anchor_ids = self._raw(_ANCHOR)
        self._adds_space = self._raw("a") != self._continued("a")
        self._adds_space_after_control = False
        if self._adds_space:
            name, index = next(iter(self.control.items()))
            native = self._tokenizer(name + "a", add_special_tokens=False)["input_ids"]
            self._adds_space_after_control = native == [index, *self._raw("a")]

    def _raw(self, text: str) -> list[int]:
        encoded = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return list(encoded["input_ids"])

    def _continued(self, text: str) -> list[int]:
        """Encode ``text`` as what follows other text: behind an anchor, whose ids are then cut off."""
        ids = self._raw(_ANCHOR + text)
        count = len(self._anchor_ids)
        return ids[count:] if ids[:count] == self._anchor_ids else self._raw(text)

    def _plain(self, text: str, after: str) -> list[int]:
        as_start = not self._adds_space or after == "start" or (after == "control" and self._adds_space_after_control)
        ids = self._raw(text) if as_start else self._continued(text)
        if not self._guarded.intersection(ids):
            return ids
        # The vocabulary itself holds the control token's spelling: tear every occurrence apart.
        torn = self._pattern.sub(lambda match: match[0][0] + "\0" + match[0][1:], text).split("\0")
        ids = self._raw(torn[0]) if as_start else self._continued(torn[0])
        for part in torn[1:]:
            ids += self._continued(part)
        if self._guarded.intersection(ids):
            raise RowError("content", "spells a control token that this tokenizer cannot split", "remove it")
        return ids

    def encode(self, pieces: Sequence[Piece], position: Position) -> tuple[list[int], Position]:
        """Encode neighbouring pieces.

        Returns:
            the token ids, and the position after them.
        """
        ids: list[int] = []
        pending = ""

        def flush(text: str) -> None:
            nonlocal position
            if position.strip:
                text = text.lstrip()
            if text:
                ids.extend(self._plain(text, position.after))
                position = Position("text")

        for piece in pieces:
            if piece.is_content:
                pending += piece.text
                continue
            start = 0
            for match in self._pattern.finditer(piece.text):
                pending += piece.text[start : match.start()]
                flush(pending.rstrip() if match[0] in self._takes_left else pending)
                pending, start = "", match.end()
                ids.append(self.control[match[0]])
                position = Position("control", match[0] in self._takes_right)
            pending += piece.text[start:]
        flush(pending)
        return ids, position

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids`` as it reads behind other text; control tokens are left out."""
        anchor = self._decode(self._anchor_ids)
        text = self._decode([*self._anchor_ids, *ids])
        return text[len(anchor) :] if text.startswith(anchor) else self._decode(list(ids))

    def _decode(self, ids: list[int]) -> str:
        kept = [index for index in ids if index not in self._guarded]
        return str(self._tokenizer.decode(kept, clean_up_tokenization_spaces=False))

    def first_control(self, text: str) -> tuple[int, int] | None:
        """Return (id, index behind it) of the first control token that ``text`` spells out."""
        match = self._pattern.search(text)
        return None if match is None else (self.control[match[0]], match.end())


def _alternatives(names: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)))
