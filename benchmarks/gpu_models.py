"""Models of benchmarks/gpu.py: random weights in bf16, a reward run on them, and the device's matrix peak."""

from __future__ import annotations

import gc
import json
import random
from pathlib import Path
from typing import Any

import torch
from gpu_cases import Work, lora_of
from ppo_workload import TOKENIZER
from ppo_workload import matrix_peak as cpu_peak
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config

from cluster.shapes import ModelShape
from rlhf.config import ModelConfig
from rlhf.data.chat import chat_format
from rlhf.data.schema import Message
from rlhf.models import adapters
from rlhf.models.scorer import HEAD, RewardSettings, ScoreHead
from rlhf.models.source import RunRecord, base_fingerprint, resolve_model
from rlhf.models.tokenizer import load_tokenizer

SIZES = (4096, 8192)


def model_config(shape: ModelShape, tokenizer: Any) -> LlamaConfig | Qwen2Config:
    """The shape in transformers' words: Qwen2 where queries, keys and values have biases, otherwise Llama."""
    kind = Qwen2Config if shape.qkv_bias else LlamaConfig
    return kind(
        vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        max_position_embeddings=4096, tie_word_embeddings=shape.tied, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def build(work: Work, shape: ModelShape, folder: Path) -> None:
    """Random bf16 weights, drawn on the device, in shards (``model``), a reward run on them, and ``prompts.jsonl``."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    torch.manual_seed(0)
    with torch.device(work.device):
        model = AutoModelForCausalLM.from_config(model_config(shape, tokenizer), dtype=torch.bfloat16)
    model.save_pretrained(str(folder / "model"), max_shard_size="4GB")
    tokenizer.save_pretrained(str(folder / "model"))
    adapted = adapters.attach(model, adapters.peft_config(lora_of(work)), "default")
    for quantization in ("none", "nf4"):
        _write_reward(folder, adapted, quantization)
    del model, adapted
    gc.collect()  # adapters refer to their model and back
    torch.cuda.empty_cache()  # cases run in other processes: what this one kept would be missing there
    write_prompts(work, folder)


def write_prompts(work: Work, folder: Path) -> None:
    """As many prompts as a run needs, of exactly ``prompt_tokens`` tokens: words that are one token each."""
    name = str(folder / "model")
    tokenizer, rng = load_tokenizer(resolve_model(name), ModelConfig(name=name)), random.Random(0)
    chat = chat_format(tokenizer, "plain")
    pieces = [str(tokenizer.decode([token])) for token in range(len(tokenizer))]
    words = [piece for piece in pieces if piece.startswith(" ") and piece.strip().isalpha()]
    found: set[str] = set()
    while len(found) < work.prompts * work.steps:
        text = "a"
        while missing := work.prompt_tokens - len(chat.encode_prompt([Message("user", text)])):
            text = text + "".join(rng.choices(words, k=missing)) if missing > 0 else "a"
        found.add(text)
    lines = "".join(json.dumps({"prompt": text}) + "\n" for text in sorted(found))
    (folder / "prompts.jsonl").write_text(lines, encoding="utf-8")


def _write_reward(folder: Path, model: Any, quantization: str) -> None:
    """A finished reward run as far as PPO reads it: untrained adapter and head."""
    base, reward = str(folder / "model"), folder / f"reward-{quantization}"
    tokenizer = load_tokenizer(resolve_model(base), ModelConfig(name=base))
    state = dict(adapters.adapter_parameters(model, "default"))
    head = ScoreHead(model.config.hidden_size).draw(0).weight
    adapters.save_adapter_file(reward / "adapter", model.peft_config["default"], base, {**state, HEAD: head})
    RewardSettings(mean=0.0, std=1.0, num_samples=1, dtype="bfloat16", figures={}).write(reward / "adapter")
    tokenizer.save_pretrained(str(reward / "tokenizer"))
    RunRecord(
        stage="reward", base=base, revision=None, adapter="adapter", quantization=quantization, chat_style="plain",
        chat_fingerprint=chat_format(tokenizer, "plain").fingerprint(), base_sha256=base_fingerprint(base),
    ).write(reward)  # fmt: skip


def matrix_peak(device: str) -> float:
    """Operations per second of a large bf16 matrix product with random entries: the best of several."""
    if device == "cpu":
        return cpu_peak(torch.get_num_threads(), "bfloat16")
    best = 0.0
    for size in SIZES:
        one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
        for _ in range(10):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            for _ in range(4):
                torch.matmul(one, other)
            ended.record()
            torch.cuda.synchronize()
            best = max(best, 4 * 2 * size**3 / (began.elapsed_time(ended) / 1e3))
    del one, other
    torch.cuda.empty_cache()
    return best
