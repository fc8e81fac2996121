"""How a conversation is written as text: by a chat template, or with no turns at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from rlhf.data.schema import Message, RowError
from rlhf.data.tokenizing import Piece, TextEncoder
from rlhf.errors import ConfigError

DEFAULT_CHAT_TEMPLATE = (
    "{%- if bos_token %}{{ bos_token }}{% endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- 'Assistant:\\n' -}}"
    "{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}"
    "{{- '\\n\\n' -}}"
    "{%- elif message['role'] == 'system' -%}"
    "{{- 'System:\\n' + message['content'] + '\\n\\n' -}}"
    "{%- else -%}"
    "{{- 'User:\\n' + message['content'] + '\\n\\n' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:\\n' -}}{%- endif -%}"
)
"""The template for base models that bring none.

Roles are plain words on a line of their own, so the vocabulary and the embeddings stay as they are; every
assistant turn ends with EOS, which is then learnt as the stop. The beginning is BOS where the tokenizer
has one, also when BOS and EOS are the same token. What it cannot do: a user who writes ``Assistant:`` on a
line imitates a turn. Where users are not trusted, train with role markers that are special tokens (style
``model``).
"""

# Some templates print the current date. A prompt must have the same ids on every day of a run and in its
# repetition.
_TEMPLATE_DATE = datetime(2024, 7, 26)


@dataclass(frozen=True)
class Chunk:
    """Text encoded by itself: what an assistant produced up to its stop (``learnt``), or what is before."""

    pieces: tuple[Piece, ...]
    learnt: bool


class Layout(Protocol):
    """Writes messages as text."""

    stop_id: int

    def chunks(self, messages: Sequence[Message], encoder: TextEncoder) -> list[Chunk]:
        """Return the text of ``messages``; after a user's turn it ends where the response begins."""


class PlainLayout:
    """BOS, the prompt's text, the response's text, EOS: language modelling without turns."""

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.eos_token is None:
            raise ConfigError("the tokenizer has no eos_token, so no response could end; set one")
        self._bos = str(tokenizer.bos_token or "")
        self._eos = str(tokenizer.eos_token)
        self.stop_id: int = tokenizer.eos_token_id

    def chunks(self, messages: Sequence[Message], encoder: TextEncoder) -> list[Chunk]:
        roles = [message.role for message in messages]
        if roles[0] not in ("text", "user") or roles[1:] not in ([], ["assistant"]):
            raise RowError("messages", f"has the turns {roles!r:.80}", "the style 'plain' takes one text; use 'auto'")
        chunks = [Chunk((Piece(self._bos, False), Piece(messages[0].content, True)), learnt=False)]
        if len(messages) == 2:
            chunks.append(Chunk((Piece(messages[1].content, True), Piece(self._eos, False)), learnt=True))
        return chunks


@dataclass(frozen=True)
class _Skeleton:
    """A template's own text for one sequence of roles.

    Args:
        pieces: text before, between and behind the contents; one more than there are messages.
        prompt_ends: per message, how much of the text before its content belongs to the prompt (assistant
            turns only; else 0).
    """

    pieces: tuple[str, ...]
    prompt_ends: tuple[int, ...]


class TemplateLayout:
    """A Jinja chat template.

    The template is rendered once per sequence of roles with place-holders for the contents, which shows
    which text is its own. A turn of an assistant begins where the same conversation, cut before it and
    opened for an answer, ends.
    """

    def __init__(self, tokenizer: Any, template: str, name: str) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._name = name
        self._skeletons: dict[tuple[str, ...], _Skeleton] = {}
        self.stop_id = -1  # known once an encoder tells control tokens from words

    def turn_markers(self) -> set[str]:
        """Return the added tokens that the template writes outside of responses."""
        skeleton = self._probe()
        own = "\n".join([skeleton.pieces[0], skeleton.pieces[1][: skeleton.prompt_ends[1]], skeleton.pieces[2]])
        added = {str(token.content) for token in self._tokenizer.added_tokens_decoder.values()}
        return {token for token in added if token in own}

    def find_stop(self, encoder: TextEncoder) -> None:
        """Find the token that ends a response.

        Raises:
            ConfigError: the template writes no control token behind a response.
        """
        stop = encoder.first_control(self._probe().pieces[-1])
        if stop is None:
            raise ConfigError(
                f"the chat template ({self._name}) does not end an assistant turn with a special token, so a "
                f"policy could not learn to stop; use the chat style 'default'"
            )
        self.stop_id = stop[0]

    def _probe(self) -> _Skeleton:
        try:
            return self._skeleton(("user", "assistant"))
        except RowError as error:
            raise ConfigError(f"the chat template ({self._name}) cannot be used: {error.reason}") from None

    def _render(self, turns: list[dict[str, str]], open_for_answer: bool) -> str:
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(
                turns,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=open_for_answer,
                strftime_now=_TEMPLATE_DATE.strftime,
            )
        except (TemplateError, TypeError, ValueError) as error:
            roles = [turn["role"] for turn in turns]
            raise RowError("messages", f"the turns {roles!r:.80} are refused by the template: {error}") from None
        return str(text)

    def _skeleton(self, roles: tuple[str, ...]) -> _Skeleton:
        if roles not in self._skeletons:
            self._skeletons[roles] = self._build_skeleton(roles)
        return self._skeletons[roles]

    def _build_skeleton(self, roles: tuple[str, ...]) -> _Skeleton:
        marks = [f"\ue000{index}\ue001" for index in range(len(roles))]
        turns = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        text = self._render(turns, open_for_answer=roles[-1] != "assistant")
        pieces, position = [], 0
        prompt_ends = [0] * len(roles)
        for index, mark in enumerate(marks):
            found = text.find(mark, position)
            if found < 0 or text.count(mark) != 1:
                raise RowError("messages", f"the template leaves out or repeats the {roles[index]} turn {index + 1}")
            if roles[index] == "assistant":
                before = self._render(turns[:index], open_for_answer=True)
                if not text.startswith(before) or not position <= len(before) <= found:
                    raise RowError(
                        "messages",
                        f"the template is not prefix preserving: turn {index + 1} changes what is before it",
                        "use the chat style 'default', or a template that only ever appends",
                    )
                prompt_ends[index] = len(before) - position
            pieces.append(text[position:found])
            position = found + len(mark)
        return _Skeleton((*pieces, text[position:]), tuple(prompt_ends))

    def _contents(self, messages: Sequence[Message], roles: tuple[str, ...], pieces: Sequence[str]) -> list[str]:
        """Return the contents as the template writes them (some trim them), or refuse when it rewrites
        one."""
        turns = [{"role": role, "content": message.content} for role, message in zip(roles, messages, strict=True)]
        text = self._render(turns, open_for_answer=roles[-1] != "assistant")
        position, contents = len(pieces[0]), []
        for index, message in enumerate(messages):
            given = message.content
            for written in (given, given.strip(), given.lstrip(), given.rstrip()):
                if text.startswith(written + pieces[index + 1], position):
                    contents.append(written)
                    position += len(written) + len(pieces[index + 1])
                    break
            else:
                raise RowError(
                    f"messages[{index}].content",
                    "is rewritten by the chat template",
                    "remove what the template treats as markup, or use the chat style 'default'",
                )
        return contents

    def chunks(self, messages: Sequence[Message], encoder: TextEncoder) -> list[Chunk]:
        roles = tuple("user" if message.role == "text" else message.role for message in messages)
        skeleton = self._skeleton(roles)
        contents = self._contents(messages, roles, skeleton.pieces)
        chunks: list[Chunk] = []
        running: list[Piece] = []
        behind = 0  # how much of the next piece the last response has taken
        for index, content in enumerate(contents):
            own = skeleton.pieces[index]
            if roles[index] != "assistant":
                running += [Piece(own[behind:], False), Piece(content, True)]
                behind = 0
                continue
            opened = skeleton.prompt_ends[index]
            chunks.append(Chunk((*running, Piece(own[behind:opened], False)), learnt=False))
            running = []
            stop = encoder.first_control(skeleton.pieces[index + 1])
            if stop is None or stop[0] != self.stop_id:
                raise RowError(
                    f"messages[{index}]", "the template does not end this assistant turn with its stop token"
                )
            behind = stop[1]
            ending = skeleton.pieces[index + 1][:behind]
            chunks.append(Chunk((Piece(own[opened:], False), Piece(content, True), Piece(ending, False)), True))
        if roles[-1] != "assistant":
            chunks.append(Chunk((*running, Piece(skeleton.pieces[-1], False)), learnt=False))
        return chunks
