"""Small real tokenizers of the families that models come with, trained on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

CORPUS = [
    "Once upon a time there was a little girl who liked to play outside in the park.",
    "User: How many apples are in the basket?\n\nAssistant: There are seven apples.\n\n",
    "System: Be kind. <think> a [INST] b </think> What should I eat today, and why? 0123456789",
] * 4

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TRIMMED = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|turn|>' + m['role'] + '\\n' + m['content'] | trim + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn|>assistant\\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_level(specials: list[Any], **names: Any) -> PreTrainedTokenizerFast:
    """GPT-2's family: every byte has a token, no space is added."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def sentencepiece_like(specials: list[str], **names: Any) -> PreTrainedTokenizerFast:
    """Llama-2's family: a space is put before the first word and after every special token."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    byte_tokens = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=["<unk>", *specials, *byte_tokens], show_progress=False
    )
    backend.train_from_iterator([line.replace("\n", " ") for line in CORPUS], trainer)
    # The byte tokens were "special" for the trainer only; in a real vocabulary they are ordinary.
    fields = json.loads(backend.to_str())
    fields["added_tokens"] = [token for token in fields["added_tokens"] if token["content"] not in byte_tokens]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(fields)), unk_token="<unk>", **names)


def unigram(**names: Any) -> PreTrainedTokenizerFast:
    """T5's family, with control tokens that the model itself can choose as pieces of a text."""
    pieces = [("<unk>", 0.0), ("<s>", -1.0), ("</s>", -1.0), ("▁", -3.0)]
    pieces += [(chr(code), -4.0) for code in range(33, 127)] + [("\n", -4.0), ("▁the", -2.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **names)


def _chatml() -> PreTrainedTokenizerFast:
    tokenizer = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def _thinking() -> PreTrainedTokenizerFast:
    tokenizer = _chatml()
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    tokenizer.chat_template = THINKING
    return tokenizer


def _trimmed() -> PreTrainedTokenizerFast:
    """Turn markers that swallow the white space behind them, and that are not flagged special."""
    tokenizer = byte_level(["<bos>", "<eos>"], bos_token="<bos>", eos_token="<eos>")
    tokenizer.add_tokens([AddedToken(name, rstrip=True, special=False) for name in ("<|turn|>", "<|end|>")])
    tokenizer.chat_template = TRIMMED
    return tokenizer


def _inst() -> PreTrainedTokenizerFast:
    tokenizer = sentencepiece_like(["<s>", "</s>"], bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = INST
    return tokenizer


BUILDERS = {
    "chatml": _chatml,
    "thinking": _thinking,
    "trimmed": _trimmed,
    "inst": _inst,
    "base_bos_is_eos": lambda: byte_level(["<|end|>"], bos_token="<|end|>", eos_token="<|end|>"),
    "base_no_bos": lambda: byte_level(["<|end|>"], eos_token="<|end|>"),
    "base_sentencepiece": lambda: sentencepiece_like(["<s>", "</s>"], bos_token="<s>", eos_token="</s>"),
    "base_unigram": lambda: unigram(bos_token="<s>", eos_token="</s>"),
}
_BUILT: dict[str, Any] = {}


def build(name: str) -> Any:
    """Return a tokenizer, trained once per test run; tests must not change it."""
    if name not in _BUILT:
        _BUILT[name] = BUILDERS[name]()
    return _BUILT[name]


def shared_folder() -> Path:
    """The folder beside the project with real models and data; it need not exist."""
    return Path(__file__).parents[4] / "shared"


if (shared_folder() / "models" / "stories260k" / "tokenizer.json").is_file():
    BUILDERS["stories260k"] = lambda: AutoTokenizer.from_pretrained(shared_folder() / "models" / "stories260k")


@pytest.fixture(params=sorted(BUILDERS))
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return build(request.param)
