"""Builds the small base language model of the quickstart from text that the project generates.

    python scripts/build_base_model.py --out rlhf/assets/helpline_base --steps 3000 --seed 0

A byte-level BPE tokenizer of 1 024 entries and a Llama of about 0.9 million parameters are trained from
scratch on the helpline corpus, with plain PyTorch. The result is an ordinary Hugging Face model directory
without a chat template: it continues text and has not learned to answer yet. The same arguments on the same
machine with the same number of threads give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf.data.helpline.corpus import END_MARK, generate_corpus

VOCABULARY_SIZE = 1024
BOS, EOS, PAD = "<s>", END_MARK, "<pad>"
CONTEXT_TOKENS = 128
HELDOUT_SEED_OFFSET = 10_000
"""The held-out documents come from a seed that far away, and those that training has too are left out."""


@dataclass(frozen=True)
class Recipe:
    """What determines the model."""

    steps: int
    seed: int
    num_documents: int
    rows_per_step: int
    learning_rate: float
    num_heldout_documents: int = 1500


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE: known words become single tokens and any other text still encodes, byte by byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text.replace(END_MARK, "\n") for text in documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A randomly initialized Llama of about 0.9 million parameters in fp32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).float()


def pack(documents: list[str], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """All documents as one stream, each between <s> and </s>, cut into rows.

    Returns:
        Token ids of shape (rows, CONTEXT_TOKENS + 1); the last incomplete row is dropped.
    """
    stream: list[int] = []
    for ids in tokenizer(documents, add_special_tokens=False)["input_ids"]:
        stream += [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    width = CONTEXT_TOKENS + 1
    usable = len(stream) // width * width
    return torch.tensor(stream[:usable]).view(-1, width)


def loss_on(model: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood in nats per token."""
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, rows: torch.Tensor) -> float:
    """Mean loss over all rows, in nats per token."""
    model.eval()
    losses = [loss_on(model, part) * len(part) for part in rows.split(64)]
    model.train()
    return float(torch.stack(losses).sum() / len(rows))


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up over 2%, then cosine to 2% of the peak."""
    warmup = max(1, recipe.steps // 50)
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, recipe.steps - warmup)
    return recipe.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def pretrain(model: LlamaForCausalLM, rows: torch.Tensor, recipe: Recipe) -> float:
    """Trains in place, printing loss and time left.

    Returns:
        The mean loss over the last hundred steps, in nats per token.
    """
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(recipe.seed)
    order = torch.randperm(len(rows), generator=generator)
    recent: list[float] = []
    started = time.monotonic()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        first = step * recipe.rows_per_step
        picked = order[torch.arange(first, first + recipe.rows_per_step) % len(rows)]
        loss = loss_on(model, rows[picked])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent = [*recent[-99:], loss.item()]
        if (step + 1) % 100 == 0 or step + 1 == recipe.steps:
            seconds = time.monotonic() - started
            left = seconds / (step + 1) * (recipe.steps - step - 1)
            mean = sum(recent) / len(recent)
            done = f"step {step + 1}/{recipe.steps}"
            print(f"{done}  loss {mean:.4f}  {seconds:.0f}s, {left:.0f}s left", flush=True)
    return sum(recent) / len(recent)


@torch.no_grad()
def sample_texts(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, num: int, seed: int) -> list[str]:
    """Documents that the model writes at temperature 1."""
    torch.manual_seed(seed)
    model.eval()
    starts = torch.full((num, 1), tokenizer.bos_token_id)
    rows = model.generate(
        starts,
        attention_mask=torch.ones_like(starts),
        max_new_tokens=90,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer.batch_decode(rows, skip_special_tokens=True)


def write_card(out: Path, facts: dict[str, str], samples: list[str]) -> None:
    """The model card: size, data, command, time, losses, checksum and samples."""
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    quoted = "\n\n".join("```text\n" + sample.strip() + "\n```" for sample in samples)
    out.joinpath("README.md").write_text(
        "# helpline_base\n\n"
        "A tiny Llama, pretrained from scratch on synthetic leaflets, letters and talks of a helpline about\n"
        "a simplified picture of diabetes. It is the base model of the quickstart: it continues text and\n"
        "knows right and wrong facts, but has no chat format. **The texts are synthetic, and nothing in or\n"
        "from this model is medical advice.**\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        f"Text that it writes by itself, at temperature 1, unselected:\n\n{quoted}\n",
        encoding="utf-8",
    )


def build(out: Path, recipe: Recipe, threads: int) -> None:
    """Generates the corpus, trains tokenizer and model, and saves everything."""
    started = time.monotonic()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    documents = generate_corpus(recipe.seed, recipe.num_documents)
    seen = set(documents)
    others = generate_corpus(recipe.seed + HELDOUT_SEED_OFFSET, recipe.num_heldout_documents)
    tokenizer = train_tokenizer(documents)
    rows = pack(documents, tokenizer)
    heldout = pack([text for text in others if text not in seen], tokenizer)
    model = make_model(tokenizer, recipe.seed)
    num_parameters = sum(p.numel() for p in model.parameters())
    num_words = sum(len(text.split()) for text in others)
    tokens_per_word = sum(len(ids) for ids in tokenizer(others)["input_ids"]) / num_words
    num_tokens = f"{rows.numel():,} tokens"
    print(f"{num_parameters:,} parameters, {num_tokens}, {tokens_per_word:.2f} tokens per word", flush=True)
    train_loss = pretrain(model, rows, recipe)
    heldout_loss = evaluate(model, heldout)
    print(f"held-out loss {heldout_loss:.4f} nats per token", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    seconds = time.monotonic() - started
    digest = hashlib.sha256(out.joinpath("model.safetensors").read_bytes()).hexdigest()
    facts = {
        "parameters": f"{num_parameters:,}, fp32, tied embeddings",
        "shape": "4 layers, hidden 128, 4 heads of 32, 2 key-value heads, intermediate 344, 512 positions",
        "tokenizer": f"byte-level BPE, {len(tokenizer)} entries, {tokens_per_word:.2f} tokens per word",
        "data": f"{recipe.num_documents:,} documents, {num_tokens}, from `rlhf.data.helpline.corpus`",
        "command": "`python scripts/build_base_model.py --out DIR "
        f"--steps {recipe.steps} --seed {recipe.seed} "
        f"--documents {recipe.num_documents} --rows {recipe.rows_per_step} "
        f"--learning-rate {recipe.learning_rate} --threads {threads}`",
        "trained on": f"{platform.machine()}, {threads} CPU thread(s), torch {torch.__version__}",
        "seconds": f"{seconds:.0f}",
        "training loss, nats per token": f"{train_loss:.4f}",
        "held-out loss, nats per token": f"{heldout_loss:.4f}",
        "sha256 of model.safetensors": f"`{digest}`",
        "license": "as the project",
    }
    samples = sample_texts(model, tokenizer, 4, recipe.seed)
    write_card(out, facts, samples)
    print("\n---\n".join(samples))
    print(f"saved {out} in {seconds:.0f} s")


def main() -> None:
    """Reads the command line and builds."""
    parser = argparse.ArgumentParser(description="Build the quickstart's base model.")
    parser.add_argument("--out", type=Path, required=True, help="directory to write the model to")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of corpus, initialization and order")
    parser.add_argument("--documents", type=int, default=60_000, help="documents in the corpus")
    parser.add_argument("--rows", type=int, default=16, help="rows of 128 tokens per step")
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    recipe = Recipe(args.steps, args.seed, args.documents, args.rows, args.learning_rate)
    build(args.out, recipe, args.threads)


if __name__ == "__main__":
    main()
