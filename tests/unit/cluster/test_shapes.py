"""Parameter counts against published ones and against models that are really built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from cluster.shapes import SHAPES, find_shape, shape_from_config
from rlhf.errors import ConfigError

PUBLISHED = {
    "qwen2.5-0.5b": 494_032_768,
    "llama-3.2-1b": 1_235_814_400,
    "qwen2.5-1.5b": 1_543_714_304,
    "llama-3.2-3b": 3_212_749_824,
    "llama-7b": 6_738_415_616,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-7b": 7_615_616_512,
    "llama-3-8b": 8_030_261_248,
    "llama-13b": 13_015_864_320,
    "qwen2.5-14b": 14_770_033_664,
    "llama-2-70b": 68_976_648_192,
    "llama-3-70b": 70_553_706_496,
    "qwen2.5-72b": 72_706_203_648,
}
SMALL = {"vocab_size": 330, "hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 3,
         "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
CONFIGS = [
    LlamaConfig(**SMALL, tie_word_embeddings=False),
    LlamaConfig(**SMALL, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    MistralConfig(**SMALL, tie_word_embeddings=False),
    Qwen2Config(**{**SMALL, "head_dim": 8}, tie_word_embeddings=True),
    Qwen3Config(**SMALL, tie_word_embeddings=False),
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_known_sizes_have_their_published_counts(name: str) -> None:
    assert SHAPES[name].parameters == PUBLISHED[name]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.model_type}-{c.tie_word_embeddings}")
def test_counts_equal_those_of_built_models(config: AutoConfig) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = shape_from_config(json.loads(config.to_json_string(use_diff=False)), "built")
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    matrices = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in name]
    assert shape.matrices == sum(m.weight.numel() for m in matrices)


def test_a_run_leads_to_its_base(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"base": str(tiny_model_dir), "adapter": "adapter"}))
    assert find_shape(str(run)) == find_shape(str(tiny_model_dir))
    assert find_shape("builtin:helpline_base").parameters == 857_216


def test_hub_names_of_known_sizes_are_known() -> None:
    assert find_shape("Qwen/Qwen2.5-7B-Instruct") == SHAPES["qwen2.5-7b"]


@pytest.mark.parametrize(
    ("tree", "word"),
    [
        ({"model_type": "mamba"}, "--shape"),
        ({"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2}, "vocab_size"),
    ],
)
def test_unknown_shapes_are_refused_with_a_way_out(tree: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        shape_from_config(tree, "config.json")
    with pytest.raises(ConfigError, match="--shape"):
        find_shape("someone/strange-model")
