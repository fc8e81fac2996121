"""Conversations as token ids: the one place where a row meets a tokenizer.

SFT, the reward model and PPO all encode through a ``ChatFormat``, so that one conversation is one sequence
of ids everywhere. Its law: for every prompt p and response r,

    encode_prompt(p) + encode_response(r) == encode_demonstration(p and r).input_ids

It holds because a text is always cut where a response begins, never encoded across that place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.data.layouts import DEFAULT_CHAT_TEMPLATE, Layout, PlainLayout, TemplateLayout
from rlhf.data.schema import DemonstrationRow, Message, RowError
from rlhf.data.tokenizing import Position, TextEncoder
from rlhf.errors import ConfigError

__all__ = ["DEFAULT_CHAT_TEMPLATE", "STYLES", "ChatFormat", "Encoded", "chat_format"]

STYLES = ("auto", "model", "default", "plain")


@dataclass(frozen=True)
class Encoded:
    """A sequence for training.

    Args:
        input_ids: token ids of prompt and response(s).
        loss_mask: True on the tokens that an assistant produced, its stop token included.
    """

    input_ids: list[int]
    loss_mask: list[bool]


class _Drawn(Message):
    """A response as a model drew it: unlike what a row holds it may be blank, or anything else that decodes."""

    def __post_init__(self) -> None:
        """Nothing is refused: a policy that ends at once is scored, too."""


class ChatFormat:
    """Encodes rows with one tokenizer in one style. Build it with ``chat_format``.

    Attributes:
        style: ``model``, ``default`` or ``plain``.
        template: the Jinja template in use; None for ``plain``.
        stop_ids: ids that end a response; the first is the one that ``encode_response`` writes.
    """

    def __init__(self, tokenizer: Any, style: str, template: str | None) -> None:
        self._tokenizer = tokenizer
        self.style = style
        self.template = template
        self._layout: Layout
        if template is None:
            self._layout = PlainLayout(tokenizer)
            self._encoder = TextEncoder(tokenizer)
        else:
            layout = TemplateLayout(tokenizer, template, style)
            self._encoder = TextEncoder(tokenizer, layout.turn_markers())
            layout.find_stop(self._encoder)
            self._layout = layout
        stops = (self._layout.stop_id, tokenizer.eos_token_id)
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(stop for stop in stops if stop is not None))
        self._refuse_doubled_bos()

    def _refuse_doubled_bos(self) -> None:
        ids, bos = self.encode_prompt((Message("user", "Hello"),)), self._tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            raise ConfigError(f"the chat template ({self.style}) writes BOS twice; remove one from the template")

    def _encode(self, messages: Sequence[Message]) -> list[tuple[list[int], bool]]:
        position = Position()
        encoded = []
        for chunk in self._layout.chunks(messages, self._encoder):
            ids, position = self._encoder.encode(chunk.pieces, position)
            encoded.append((ids, chunk.learnt))
        return encoded

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a prompt, opened for the response; BOS, where the style has one, stands once.

        Raises:
            DataError: the style cannot write these turns.
        """
        if not messages or messages[-1].role == "assistant":
            raise RowError("messages", "does not end with a turn to answer", "end the prompt with the user's turn")
        return [index for ids, _ in self._encode(messages) for index in ids]

    def encode_response(self, response: str) -> list[int]:
        """Return the ids of a response, its stop token last; of a blank one, too."""
        return self._encode((Message("user", "Hello"), _Drawn("assistant", response)))[-1][0]

    def encode_demonstration(self, row: DemonstrationRow) -> Encoded:
        """Return the ids of a whole conversation, up to the last stop token, and where to take the loss."""
        encoded = self._encode(row.messages)
        return Encoded([index for ids, _ in encoded for index in ids], [learnt for ids, learnt in encoded for _ in ids])

    def decode_response(self, ids: Sequence[int]) -> str:
        """Return a response's text: up to its first stop token, without control tokens."""
        kept = []
        for index in map(int, ids):
            if index in self.stop_ids:
                break
            kept.append(index)
        return self._encoder.decode(kept)

    def fingerprint(self) -> str:
        """Return 64 hex digits that change when ids could: vocabulary, template, special tokens,
        segmentation.

        Two parts of a system whose fingerprints differ must not exchange token ids.
        """
        facts = {
            "style": self.style,
            "template": self.template,
            "stop_ids": self.stop_ids,
            "control": self._encoder.control,
            "special": [
                self._tokenizer.bos_token_id,
                self._tokenizer.eos_token_id,
                self._tokenizer.pad_token_id,
            ],
            "vocabulary": sorted(self._tokenizer.get_vocab().items()),
            "probe": self._encode((Message("user", _PROBE_TEXT), Message("assistant", _PROBE_TEXT))),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode("utf-8")).hexdigest()


# Words, numbers, white space, capitals, accents and other scripts: two tokenizers that cut them alike cut
# all alike.
_PROBE_TEXT = "Once upon a time, in 2024:\n\n  the naïve Cat's 3.14 apples\t— ÜBER 你好 🙂 un-believ-able!"


def chat_format(tokenizer: Any, style: str = "auto") -> ChatFormat:
    """Build the format in which a tokenizer's model reads conversations.

    Args:
        tokenizer: a transformers tokenizer; it is not changed.
        style: ``model`` takes the tokenizer's own template, ``default`` takes ``DEFAULT_CHAT_TEMPLATE``,
            ``auto`` the first of these that exists, ``plain`` writes no turns at all.

    Raises:
        ConfigError: the style is unknown, or the tokenizer or its template cannot serve.
    """
    if style not in STYLES:
        raise ConfigError(f"chat style {style!r} is not known; use one of {', '.join(STYLES)}")
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer has no eos_token, so no response could end; set one")
    if style == "plain":
        return ChatFormat(tokenizer, "plain", None)
    own = tokenizer.get_chat_template() if tokenizer.chat_template else None
    if style == "model" and own is None:
        raise ConfigError("the tokenizer brings no chat template; use the chat style 'default' or 'plain'")
    if style == "default" or own is None:
        return ChatFormat(tokenizer, "default", DEFAULT_CHAT_TEMPLATE)
    return ChatFormat(tokenizer, "model", own)
