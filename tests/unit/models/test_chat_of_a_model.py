"""A model that comes from a run goes on in the run's chat format, and what does not fit a model is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from transformers import Gemma2Config, Gemma2ForCausalLM

from rlhf.config import ModelConfig
from rlhf.errors import ConfigError
from rlhf.models.base_config import attention_of
from rlhf.models.export import export_run
from rlhf.models.loading import load_causal_lm
from rlhf.models.scorer import check_reward_run, load_reward_model
from rlhf.models.source import resolve_model
from rlhf.models.tokenizer import load_chat
from rlhf.stages.critic_ranks import critic_origin
from tests.support.ppo import tiny_config
from tests.support.runs import write_reward_run, write_run
from tests.support.tiny import build_tokenizer, copy_with

TURNS = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
Style = Literal["auto", "model", "default", "plain"]


@pytest.fixture
def chatty_base(tiny_base: Path, tmp_path: Path) -> Path:
    """The tiny model with a template of its own, whose turns end with the pad token."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|end|>"]})
    tokenizer.chat_template = TURNS
    tokenizer.pad_token = "<|end|>"
    return copy_with(tiny_base, tmp_path / "chatty", tokenizer)


def style_of(name: Path, chat_style: Style) -> str:
    model = ModelConfig(name=str(name), chat_style=chat_style)
    return load_chat(resolve_model(model.name), model)[1].style


def test_a_run_s_format_is_gone_on_with(chatty_base: Path, tmp_path: Path) -> None:
    assert style_of(chatty_base, "auto") == "model"
    run = write_run(tmp_path / "run", chatty_base, chat_style="plain")
    assert style_of(run, "auto") == "plain"
    assert style_of(run, "model") == "model", "what is asked for by name is done"


def test_pad_is_not_what_ends_a_turn(chatty_base: Path) -> None:
    model = ModelConfig(name=str(chatty_base))
    tokenizer, chat = load_chat(resolve_model(model.name), model)
    assert tokenizer.convert_tokens_to_ids("<|end|>") == chat.stop_ids[0] != tokenizer.pad_token_id
    assert tokenizer.pad_token == "<pad>"


@pytest.fixture
def capped_base(tmp_path: Path) -> Path:
    """A model that caps its attention's logits, two layers of width 64."""
    tokenizer = build_tokenizer()
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path / "gemma")
    tokenizer.save_pretrained(tmp_path / "gemma")
    return tmp_path / "gemma"


def test_capped_attention_goes_the_way_that_caps(capped_base: Path, tiny_base: Path) -> None:
    """Unless something else is asked for, which is refused."""
    model = ModelConfig(name=str(capped_base))
    source = resolve_model(model.name)
    with pytest.raises(ConfigError, match=r"attn_logit_softcapping=50 .*leave it at auto"):
        load_chat(source, model.model_copy(update={"attention": "sdpa"}))
    tokenizer, _ = load_chat(source, model)
    assert load_causal_lm(source, model, tokenizer).config._attn_implementation == "eager"
    plain = ModelConfig(name=str(tiny_base))
    assert attention_of(resolve_model(plain.name), plain) == "sdpa"


def test_a_reward_run_on_capped_attention_is_scored_and_exported(capped_base: Path, tmp_path: Path) -> None:
    """By whatever reads a run without its config."""
    run = write_reward_run(tmp_path / "reward", capped_base, 1)
    check_reward_run(run)
    scorer = load_reward_model(run)
    assert scorer.model.config._attn_implementation == "eager"
    report = export_run(resolve_model(str(run)), tmp_path / "exported", merge=True)
    assert report.max_difference <= report.bound


def test_a_critic_on_the_policy_s_own_base_reads_its_tokens(chatty_base: Path, tmp_path: Path) -> None:
    """Although the policy's pad token is another one than the tokenizer's."""
    config = tiny_config(chatty_base, tmp_path / "run", **{"roles.critic": str(chatty_base)})
    origin = critic_origin(config, resolve_model(str(chatty_base)))
    assert origin is not None and origin.source.base == str(chatty_base)
