"""Pad is its own token, whatever the tokenizer came with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlhf.config import ModelConfig
from rlhf.errors import ConfigError
from rlhf.models import tokenizer as tokenizers
from rlhf.models.loading import load_causal_lm
from rlhf.models.source import resolve_model
from rlhf.models.tokenizer import ensure_pad_token, load_tokenizer
from tests.support.tiny import build_tokenizer, copy_with


def test_own_pad_is_kept() -> None:
    tokenizer = build_tokenizer()
    before = tokenizer.pad_token_id
    assert ensure_pad_token(tokenizer) is False
    assert tokenizer.pad_token_id == before not in (tokenizer.eos_token_id, tokenizer.bos_token_id)


def test_missing_pad_is_added_and_the_model_grows(tiny_base: Path, tmp_path: Path) -> None:
    directory = copy_with(tiny_base, tmp_path / "m", build_tokenizer(with_pad=False, vocab_size=300))
    source, config = resolve_model(str(directory)), ModelConfig(name=str(directory))
    tokenizer = load_tokenizer(source, config)
    assert tokenizer.pad_token == "<|pad|>" and tokenizer.pad_token_id == len(tokenizer) - 1
    model = load_causal_lm(source, config, tokenizer)
    assert model.get_input_embeddings().weight.shape[0] >= len(tokenizer)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    logits = model(torch.tensor([[tokenizer.pad_token_id, 5]])).logits
    assert torch.isfinite(logits).all()


def test_growing_leaves_old_rows_alone(tiny_base: Path, tmp_path: Path) -> None:
    big = build_tokenizer()
    big.add_tokens(["<new1>", "<new2>"])
    directory = copy_with(tiny_base, tmp_path / "m", big)
    config = ModelConfig(name=str(directory))
    before = load_causal_lm(
        resolve_model(str(tiny_base)), config, load_tokenizer(resolve_model(str(tiny_base)), config)
    )
    source = resolve_model(str(directory))
    after = load_causal_lm(source, config, load_tokenizer(source, config))
    rows = before.get_input_embeddings().weight.shape[0]
    assert after.get_input_embeddings().weight.shape[0] == rows + 2
    assert torch.equal(after.get_input_embeddings().weight[:rows], before.get_input_embeddings().weight)
    assert torch.equal(after.lm_head.weight[:rows], before.lm_head.weight)


@pytest.mark.parametrize("shared", ["eos", "bos"])
def test_pad_shared_with_a_control_token_is_replaced(shared: str) -> None:
    tokenizer = build_tokenizer(with_pad=False)
    tokenizer.pad_token = tokenizer.eos_token if shared == "eos" else tokenizer.bos_token
    assert ensure_pad_token(tokenizer) is True
    assert tokenizer.pad_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id)


def test_a_reserved_pad_of_the_vocabulary_comes_first() -> None:
    tokenizer = build_tokenizer()
    size = len(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    assert ensure_pad_token(tokenizer) is False
    assert tokenizer.pad_token == "<pad>" and len(tokenizer) == size


def test_bos_equal_to_eos_is_fine(tiny_base: Path, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(with_bos=False)
    tokenizer.bos_token = tokenizer.eos_token
    directory = copy_with(tiny_base, tmp_path / "m", tokenizer)
    loaded = load_tokenizer(resolve_model(str(directory)), ModelConfig(name=str(directory)))
    assert loaded.bos_token_id == loaded.eos_token_id != loaded.pad_token_id


def test_tokenizer_without_an_end_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    directory = copy_with(tiny_base, tmp_path / "m", tokenizer)
    with pytest.raises(ConfigError, match="no end-of-sequence token"):
        load_tokenizer(resolve_model(str(directory)), ModelConfig(name=str(directory)))


def test_foreign_tokenizer_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([f"<extra{i}>" for i in range(100)])
    directory = copy_with(tiny_base, tmp_path / "m", tokenizer)
    source, config = resolve_model(str(directory)), ModelConfig(name=str(directory))
    with pytest.raises(ConfigError, match="do not belong together"):
        load_causal_lm(source, config, load_tokenizer(source, config))


def test_a_misspelt_path_is_told_at_once_where_the_hub_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: object) -> None:
        raise OSError(-2, "Name or service not known")

    def asked(*_: object, **__: object) -> None:
        raise AssertionError("the hub's client tries for more than a minute")

    monkeypatch.setattr(tokenizers, "getproxies", dict)
    monkeypatch.setattr(tokenizers.socket, "getaddrinfo", nowhere)
    monkeypatch.setattr(tokenizers.AutoTokenizer, "from_pretrained", asked)
    for name, words in (("no_such_thing", "there is no directory 'no_such_thing' here"), ("no such", "cannot be load")):
        with pytest.raises(ConfigError, match=words):
            load_tokenizer(resolve_model(name), ModelConfig(name=name))
