"""A tiny Llama with random weights and a byte-level BPE whose bos, eos and pad differ."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CORPUS = [
    "Once upon a time there was a little girl who liked to play outside in the park with a red ball.",
    "The dog saw the cat and the cat saw the dog. They ran and ran, and then they were good friends!",
    "What should I eat today? You may eat bread, apples and soup; ask your doctor about the rest.",
] * 3


def build_tokenizer(*, with_pad: bool = True, with_bos: bool = True, vocab_size: int = 300) -> PreTrainedTokenizerFast:
    """Trains the tokenizer; without its own pad or bos where asked."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<s>"] * with_bos + ["</s>"] + ["<pad>"] * with_pad
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(s, special=True) for s in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(CORPUS, trainer)
    names = {
        "eos_token": "</s>",
        "bos_token": "<s>" if with_bos else None,
        "pad_token": "<pad>" if with_pad else None,
    }
    return PreTrainedTokenizerFast(tokenizer_object=raw, **names)


def llama_config(tokenizer: PreTrainedTokenizerFast, **changes: object) -> LlamaConfig:
    """Two layers of width 64."""
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
        "initializer_range": 0.15,  # peaked enough that a wrong shift, mask or position shows in the log-probs
        **changes,
    }
    return LlamaConfig(**settings)  # type: ignore[arg-type]


def build_model(directory: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object) -> Path:
    """Saves model and tokenizer; returns the directory."""
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(llama_config(tokenizer, **changes)).to(dtype)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def copy_with(source: Path, target: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The model in another directory with another tokenizer."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("tokenizer*", "special_tokens*"))
    tokenizer.save_pretrained(target)
    return target


@pytest.fixture(scope="session")
def tiny_base(tiny_model_dir: Path) -> Path:
    """A model directory that nobody changes; one thread, because the tensors are tiny."""
    torch.set_num_threads(1)
    return tiny_model_dir
