"""Shapes of decoder-only transformers as arithmetic: which tensors a model has, without building it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import rlhf.config
from rlhf.errors import ConfigError

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")
BUILTIN_PREFIX = "builtin:"


@dataclass(frozen=True)
class Linear:
    """A matrix that maps ``inputs`` to ``outputs``; adapters attach to these."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def weight(self) -> int:
        """Elements of the matrix."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a Llama-like decoder (RMSNorm, rotary positions, gated MLP, grouped key-value heads)."""

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    name: str = field(default="", compare=False)

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """The matrices of one layer."""
        attention, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return (
            Linear("q_proj", self.hidden, attention, self.qkv_bias),
            Linear("k_proj", self.hidden, keys, self.qkv_bias),
            Linear("v_proj", self.hidden, keys, self.qkv_bias),
            Linear("o_proj", attention, self.hidden, self.output_bias),
            Linear("gate_proj", self.hidden, self.intermediate, self.mlp_bias),
            Linear("up_proj", self.hidden, self.intermediate, self.mlp_bias),
            Linear("down_proj", self.intermediate, self.hidden, self.mlp_bias),
        )

    @cached_property
    def layer_vectors(self) -> tuple[int, ...]:
        """Elements of one layer's tensors that are no matrices: biases and norms."""
        biases = [m.outputs for m in self.linears if m.bias]
        return (*biases, self.hidden, self.hidden, *((self.head_dim,) * 2 if self.qk_norm else ()))

    @cached_property
    def outer(self) -> tuple[int, ...]:
        """Elements of the tensors outside the layers: embedding, last norm, and the output matrix unless tied."""
        table = self.vocab * self.hidden
        return (table, self.hidden) if self.tied else (table, self.hidden, table)

    @property
    def matrices(self) -> int:
        """Elements of all layers' matrices: what 4-bit and 8-bit bases quantize, and what a token is multiplied by."""
        return self.layers * sum(m.weight for m in self.linears)

    @property
    def parameters(self) -> int:
        """Elements of the whole model."""
        return self.matrices + self.layers * sum(self.layer_vectors) + sum(self.outer)


def shape_from_config(tree: Mapping[str, Any], source: str) -> ModelShape:
    """Reads a Hugging Face ``config.json``.

    Raises:
        ConfigError: another architecture, or a size is missing.
    """
    kind = tree.get("model_type")
    if kind not in SUPPORTED:
        raise ConfigError(
            f"{source}: model_type={kind!r} is not in the memory model ({', '.join(SUPPORTED)}); "
            "give --shape with the nearest known size"
        )
    try:
        hidden, heads = int(tree["hidden_size"]), int(tree["num_attention_heads"])
        return ModelShape(
            vocab=int(tree["vocab_size"]),
            hidden=hidden,
            intermediate=int(tree["intermediate_size"]),
            layers=int(tree["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(tree.get("num_key_value_heads") or heads),
            head_dim=int(tree.get("head_dim") or hidden // heads),
            tied=bool(tree.get("tie_word_embeddings", False)),
            qkv_bias=bool(tree.get("attention_bias", kind == "qwen2")),
            output_bias=bool(tree.get("attention_bias", False)) and kind == "llama",
            mlp_bias=bool(tree.get("mlp_bias", False)),
            qk_norm=kind == "qwen3",
            name=source,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {error} is missing or no number, so its size is unknown") from None


def find_shape(name: str, option: str = "--shape") -> ModelShape:
    """The shape behind a model name: a model or run directory, a shipped model, a hub id in the cache, or a known size.

    Args:
        option: of the command line, that tells the shape otherwise.

    Raises:
        ConfigError: nothing here tells the shape.
    """
    directory = _directory_of(name)
    if directory is not None:
        path = directory / "config.json"
        try:
            return shape_from_config(json.loads(path.read_text(encoding="utf-8")), name)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read ({error}); give {option} NAME instead") from None
    known = name.lower().rsplit("/", 1)[-1].removesuffix("-hf").removesuffix("-instruct")
    if known in SHAPES:
        return SHAPES[known]
    raise ConfigError(f"the shape of {name!r} is not known here; give {option}, one of: {', '.join(SHAPES)}")


def held_by_run(name: str) -> dict[str, Any] | None:
    """How the base was held on which a run's adapter was trained; None for anything but a run with an adapter.

    Raises:
        ConfigError: its record cannot be read.
    """
    path = Path(name) / "run.json"
    record = _read_record(path) if path.is_file() else {}
    defaults = {"quantization": "none", "double_quantization": True}
    return {key: record.get(key, default) for key, default in defaults.items()} if record.get("adapter") else None


def _directory_of(name: str) -> Path | None:
    if name.startswith(BUILTIN_PREFIX):
        return Path(rlhf.config.__file__).parents[1] / "assets" / name.removeprefix(BUILTIN_PREFIX)
    path = Path(name)
    if (path / "run.json").is_file():
        record = _read_record(path / "run.json")
        return _directory_of(str(record["base"])) if record.get("adapter") else path / "model"
    if (path / "config.json").is_file() and not (path / "config.yaml").is_file():
        return path
    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "hub"
    found = sorted((cache / f"models--{name.replace('/', '--')}").glob("snapshots/*/config.json"))
    return found[-1].parent if found else None


def _read_record(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a run record: {error}") from None


def _known(name: str, vocab: int, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int,
           **more: Any) -> ModelShape:  # fmt: skip
    head_dim = more.pop("head_dim", hidden // heads)
    return ModelShape(vocab, hidden, intermediate, layers, heads, kv_heads, head_dim, name=name, **more)


_QWEN = {"qkv_bias": True}
SHAPES: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        _known("qwen2.5-0.5b", 151_936, 896, 4_864, 24, 14, 2, tied=True, **_QWEN),
        _known("llama-3.2-1b", 128_256, 2_048, 8_192, 16, 32, 8, tied=True),
        _known("qwen2.5-1.5b", 151_936, 1_536, 8_960, 28, 12, 2, tied=True, **_QWEN),
        _known("llama-3.2-3b", 128_256, 3_072, 8_192, 28, 24, 8, tied=True),
        _known("qwen2.5-3b", 151_936, 2_048, 11_008, 36, 16, 2, tied=True, **_QWEN),
        _known("llama-7b", 32_000, 4_096, 11_008, 32, 32, 32),
        _known("mistral-7b", 32_000, 4_096, 14_336, 32, 32, 8),
        _known("qwen2.5-7b", 152_064, 3_584, 18_944, 28, 28, 4, **_QWEN),
        _known("llama-3-8b", 128_256, 4_096, 14_336, 32, 32, 8),
        _known("llama-13b", 32_000, 5_120, 13_824, 40, 40, 40),
        _known("qwen2.5-14b", 152_064, 5_120, 13_824, 48, 40, 8, **_QWEN),
        _known("qwen2.5-32b", 152_064, 5_120, 27_648, 64, 40, 8, **_QWEN),
        _known("llama-2-70b", 32_000, 8_192, 28_672, 80, 64, 8),
        _known("llama-3-70b", 128_256, 8_192, 28_672, 80, 64, 8),
        _known("qwen2.5-72b", 152_064, 8_192, 29_568, 80, 64, 8, **_QWEN),
    )
}
"""Sizes of well-known models, from their published configurations."""
