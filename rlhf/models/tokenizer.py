"""A model's tokenizer, with a pad token of its own, and the format in which the model reads conversations."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, try_to_load_from_cache
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf.config import ModelConfig
from rlhf.data.chat import ChatFormat, chat_format
from rlhf.errors import CheckpointError, ConfigError
from rlhf.models.base_config import attention_of
from rlhf.models.source import ModelSource
from rlhf.models.trust import check_remote_code, read_object

RESERVED_PADS = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|endofpad|>")
ADDED_PAD = "<|pad|>"
MAX_NEW_TOKENS = 64
"""How far a tokenizer may exceed the embedding, which then grows: padding and a few markers, not another vocabulary."""


def load_tokenizer(source: ModelSource, config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer alone; errors as in ``load_chat``."""
    return load_chat(source, config)[0]


def load_chat(source: ModelSource, config: ModelConfig) -> tuple[PreTrainedTokenizerBase, ChatFormat]:
    """Loads a tokenizer whose pad token ends nothing, and the format in which the model reads conversations.

    With ``chat_style=auto`` a model that comes from a run goes on in the run's format: what it has learnt is to answer
    in that one.

    Raises:
        ConfigError: there is none, it brings unread code, it has no end token, its template cannot serve, or
            ``model.attention`` does not fit this model.
        CheckpointError: it is not the one that the run was trained with.
    """
    check_remote_code((Path(source.base), Path(source.tokenizer)), config)
    try:
        if not Path(source.tokenizer).is_dir():
            check_hub(source.tokenizer, source.revision)
        tokenizer = AutoTokenizer.from_pretrained(
            source.tokenizer,
            revision=source.revision,
            trust_remote_code=config.trust_remote_code,
            padding_side="right",
            **({"code_revision": config.revision} if config.trust_remote_code else {}),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ConfigError(f"the tokenizer of {source.tokenizer} cannot be loaded: {error}") from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"the tokenizer of {source.tokenizer} has no end-of-sequence token: responses could never end"
        )
    attention_of(source, config)  # refused before anything is loaded
    ensure_pad_token(tokenizer)
    check_vocabulary(source, tokenizer)
    check_tokenizer(source, tokenizer)
    style = chat_style_of(source, config)
    ensure_pad_token(tokenizer, chat_format(tokenizer, style).stop_ids)
    return tokenizer, chat_format(tokenizer, style)


def chat_style_of(source: ModelSource, config: ModelConfig) -> str:
    """The config's style or, where it is left open, that of the run which the model comes from."""
    return config.chat_style if source.record is None or config.chat_style != "auto" else source.record.chat_style


def check_hub(name: str, revision: str | None = None) -> None:
    """Refuses at once a name that is no directory here, where the hub has no address: its client would try for minutes.

    Raises:
        ConfigError: the name leads nowhere, and no earlier download of it is kept.
    """
    host = urlsplit(constants.ENDPOINT).hostname or ""
    files = ("config.json", "tokenizer_config.json", "tokenizer.json")
    kept = any(isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in files)
    if kept or getproxies():
        return
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        raise ConfigError(
            f"there is no directory {name!r} here: train it first, or check the path; it cannot be a name of the hub "
            f"either, as {host} has no address from this machine ({error.strerror})"
        ) from None


def check_vocabulary(source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer with more tokens than the base embeds, where the base is a directory.

    Raises:
        ConfigError: they do not belong together. A few tokens more (a pad token) are added to the model instead.
    """
    settings = Path(source.base) / "config.json"
    if not settings.is_file():
        return
    config = read_object(settings)
    rows = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    needed = max(tokenizer.get_vocab().values()) + 1
    if isinstance(rows, int) and needed - rows > MAX_NEW_TOKENS:
        raise ConfigError(
            f"the tokenizer of {source.tokenizer} has {needed} tokens but the model {source.base} embeds {rows}: they "
            "do not belong together"
        )


def check_tokenizer(source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a run's tokenizer that writes text otherwise than the one the run was trained with.

    Raises:
        CheckpointError: vocabulary, template or special tokens have changed.
    """
    if source.record is None:
        return
    found = chat_format(tokenizer, source.record.chat_style).fingerprint()
    if found != source.record.chat_fingerprint:
        raise CheckpointError(
            f"{source.tokenizer} is not the tokenizer that run {source.run_dir} was trained with (it writes text as "
            f"{found[:12]}, the run as {source.record.chat_fingerprint[:12]}): restore the run's tokenizer directory"
        )


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int] = ()) -> bool:
    """Gives the tokenizer a pad token that is neither eos nor bos, nor what the chat template ends a turn with.

    With pad = eos a classifier reads the token before the end, masks lose the end token, and as nothing may draw pad,
    no response would end. A reserved pad token of the vocabulary is taken first; only then one is added.

    Returns:
        True when the vocabulary grew.
    """
    taken = {tokenizer.eos_token_id, tokenizer.bos_token_id, *stop_ids}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in taken:
        return False
    vocabulary = tokenizer.get_vocab()
    for name in RESERVED_PADS:
        if name in vocabulary and vocabulary[name] not in taken:
            tokenizer.pad_token = name
            return False
    tokenizer.add_special_tokens({"pad_token": ADDED_PAD})
    return True
