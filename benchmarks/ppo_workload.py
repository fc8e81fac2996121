"""The PPO workload of side-by-side benchmarks: a random Llama whose responses have a wanted length, and its floor."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rlhf.data.chat import chat_format
from rlhf.data.schema import Message
from rlhf.models.products import linear
from rlhf.models.source import resolve_model

TOKENIZER = resolve_model("builtin:helpline_base").tokenizer
NEVER = -30.0


@dataclass(frozen=True)
class Workload:
    """One step draws ``prompts_per_step`` responses of up to ``response_tokens`` and learns from them.

    Attributes:
        natural: responses end by themselves, after 30 % of the maximum on average; otherwise never.
    """

    hidden_size: int = 256
    num_layers: int = 8
    prompt_tokens: int = 32
    response_tokens: int = 64
    prompts_per_step: int = 32
    minibatches: int = 4
    epochs: int = 4
    steps: int = 4
    lora_r: int = 16
    learning_rate: float = 1e-5
    dtype: str = "float32"
    natural: bool = False


def build_model(work: Workload, directory: Path) -> Path:
    """A random Llama with the shipped tokenizer.

    The first component of every hidden state is held at a constant, so that one column of the output layer sets how
    likely the end of a response is, whatever stands before it.
    """
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=work.hidden_size, intermediate_size=work.hidden_size * 43 // 16,
        num_hidden_layers=work.num_layers, num_attention_heads=work.hidden_size // 32,
        num_key_value_heads=work.hidden_size // 64, max_position_embeddings=512, tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    probability = 1 / (0.3 * work.response_tokens)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        ids = torch.randint(len(tokenizer), (8, 64))
        hidden = model.model(ids).last_hidden_state
        others = (hidden @ model.lm_head.weight.T).float().logsumexp(-1).mean()
        odds = float(others + torch.tensor(probability / (1 - probability)).log())
        model.lm_head.weight[config.eos_token_id] = 0.0
        model.lm_head.weight[config.eos_token_id, 0] = (odds if work.natural else NEVER) / hidden[..., 0].mean()
    model.to(getattr(torch, work.dtype)).save_pretrained(str(directory))
    tokenizer.save_pretrained(str(directory))
    return directory


def write_prompts(work: Workload, path: Path, seed: int = 0) -> list[list[int]]:
    """As many prompts as the run needs, of exactly ``prompt_tokens`` tokens each; returns the ids both sides see."""
    tokenizer, rng = AutoTokenizer.from_pretrained(TOKENIZER), random.Random(seed)
    chat = chat_format(tokenizer, "plain")
    words = [word for word in map(tokenizer.decode, range(len(tokenizer))) if word.strip().isalpha()]
    found: dict[str, list[int]] = {}
    while len(found) < work.prompts_per_step * work.steps:
        text = "a"
        while len(ids := chat.encode_prompt([Message("user", text)])) < work.prompt_tokens:
            text += " " + rng.choice(words).strip()
        if len(ids) == work.prompt_tokens:
            found[text] = ids
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in found), encoding="utf-8")
    return list(found.values())


def matrix_peak(threads: int, dtype: str, size: int = 1024) -> float:
    """Floating-point operations per second of a large matrix product with all threads: the best of several.

    The better of torch's own choice of library and the one that this system takes.
    """
    torch.set_num_threads(threads)
    one = torch.randn(size, size).to(getattr(torch, dtype))
    best = 0.0
    for product in (torch.matmul, linear):
        for _ in range(30):
            began = time.perf_counter()
            product(one, one)
            best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


class Operations(NamedTuple):
    """Floating-point operations of one token's forward pass.

    Attributes:
        body: through all layers.
        tail: of these, behind the last layer's attention: needed only where the result is read.
        head: for its logits.
    """

    body: float
    tail: float
    head: float


def operations_per_token(work: Workload, sequence_tokens: float) -> Operations:
    """Attention's share is that of a sequence of this length."""
    h, inner, r = work.hidden_size, work.hidden_size * 43 // 16, work.lora_r
    layer = h * h * 2 + 2 * h * (h // 2) + 3 * h * inner + r * (8 * h + 2 * h // 2 + 3 * (h + inner))
    attention = 2 * h * sequence_tokens / 2  # query-key and weight-value products, half of them under the causal mask
    tail = h * h + 3 * h * inner + r * (2 * h + 3 * (h + inner))
    vocabulary = len(AutoTokenizer.from_pretrained(TOKENIZER))
    return Operations(2 * work.num_layers * (layer + attention), 2 * tail, 2 * h * vocabulary)


def learn_operations(work: Workload, mean_response: float) -> float:
    """Operations of a step's updates: per epoch a forward and a backward pass of policy and critic.

    A frozen matrix costs 2 operations per weight and token forward and 2 backward. Only the states before response
    tokens are read, so that a sequence's last token is left out, and only the policy's need logits.
    """
    body, tail, head = operations_per_token(work, work.prompt_tokens + mean_response)
    drawn = work.prompts_per_step * mean_response
    before = work.prompts_per_step * (work.prompt_tokens - 1)
    return work.epochs * 2 * (2 * ((drawn + before) * body - before * tail) + drawn * head)


def floor_seconds(work: Workload, peak: float, mean_response: float) -> float:
    """Seconds per step if every needed matrix product ran at the measured peak, and nothing else took time.

    Counted: each response drawn once with a cache, which gives the old log-probs; those of the reference, values and
    scores once; updates.
    """
    body, tail, head = operations_per_token(work, work.prompt_tokens + mean_response)
    sequences = work.prompts_per_step
    drawn = sequences * mean_response
    before = sequences * (work.prompt_tokens - 1)  # with them the states before all drawn tokens
    tokens = drawn + before + sequences
    judged = (2 * (drawn + before) + tokens) * body - (2 * before + tokens - sequences) * tail + drawn * head
    return (
        (drawn + before) * body - before * tail + drawn * head + judged + learn_operations(work, mean_response)
    ) / peak
