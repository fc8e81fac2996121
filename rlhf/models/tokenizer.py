"""Tokenizers with a pad token of their own."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, try_to_load_from_cache
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf.config import ModelConfig
from rlhf.data.chat import chat_format
from rlhf.errors import CheckpointError, ConfigError
from rlhf.models.source import ModelSource
from rlhf.models.trust import check_remote_code, read_object

RESERVED_PADS = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|endofpad|>")
ADDED_PAD = "<|pad|>"
MAX_NEW_TOKENS = 64
"""How far a tokenizer may exceed the embedding, which then grows: padding and a few markers, not another vocabulary."""


def load_tokenizer(source: ModelSource, config: ModelConfig) -> PreTrainedTokenizerBase:
    """Loads a tokenizer and makes sure that pad differs from eos and bos.

    Raises:
        ConfigError: there is none, it brings unread code, or it has no end token.
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
    ensure_pad_token(tokenizer)
    check_vocabulary(source, tokenizer)
    check_tokenizer(source, tokenizer)
    return tokenizer


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


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Gives the tokenizer a pad token that is neither eos nor bos.

    With pad = eos a classifier reads the token before the end, and masks lose the end token. A reserved pad
    token of the vocabulary is taken first; only then one is added.

    Returns:
        True when the vocabulary grew.
    """
    taken = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in taken:
        return False
    vocabulary = tokenizer.get_vocab()
    for name in RESERVED_PADS:
        if name in vocabulary and vocabulary[name] not in taken:
            tokenizer.pad_token = name
            return False
    tokenizer.add_special_tokens({"pad_token": ADDED_PAD})
    return True
