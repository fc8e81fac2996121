"""Response tokens per second: the transformers engine against plain ``model.generate``, at natural lengths.

    python benchmarks/rollout_engines.py [--quick] [--model DIR] [--threads N]

Natural lengths: some tokens of the vocabulary stop a response, as many as give a mean of at most 40 % of the maximum.
Both sides hold the same LoRA model, the same prompts and the same number of rows at a time, and run in turn; the
figure is the median of the ratios. The default model is made by ../shared/bench (a random Llama of 5.9 million
parameters). Writes benchmarks/rollout-engines-<date>.json.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import save
from transformers import AutoModelForCausalLM

from rlhf.config import LoraConfig, SamplingConfig
from rlhf.models import adapters
from rlhf.models.roles import POLICY
from rlhf.rollout.protocol import PromptTask
from rlhf.rollout.transformers_engine import TransformersGenerator
from rlhf.weights.snapshot import pack

BENCH = Path("../shared/bench")


@dataclass(frozen=True)
class Workload:
    """How much is drawn. Each token ends its response with a probability of about 1 / ``mean_tokens``."""

    num_prompts: int
    prompt_tokens: int
    max_response_tokens: int
    mean_tokens: int
    rows: int


WORKLOADS = {
    "short": Workload(192, 32, 64, 26, 64),
    "long": Workload(128, 32, 256, 90, 64),
    "small_batch": Workload(64, 32, 128, 45, 16),
}


def build(directory: str, lora: bool) -> Any:
    """The model of the benchmark, with an adapter that is not zero."""
    base = AutoModelForCausalLM.from_pretrained(directory)
    if not lora:
        return base
    model = adapters.attach(base, adapters.peft_config(LoraConfig(r=16)), POLICY)
    return model.eval()


def random_adapter(model: Any) -> dict[str, torch.Tensor]:
    """Small random tensors of the adapter's shape."""
    generator = torch.Generator().manual_seed(1)
    return {k: torch.randn(p.shape, generator=generator) * 0.02 for k, p in adapters.adapter_parameters(model, POLICY)}


def measure_ours(engine: TransformersGenerator, tasks: list[PromptTask], limit: int) -> tuple[int, float]:
    """(response tokens, seconds) of the engine."""
    started = time.perf_counter()
    found = engine.generate(tasks, SamplingConfig(max_response_tokens=limit))
    return sum(len(r.response_ids) for r in found), time.perf_counter() - started


@torch.no_grad()
def measure_generate(
    model: Any, tasks: list[PromptTask], work: Workload, stops: list[int], seed: int
) -> tuple[int, float]:
    """(response tokens, seconds) of ``generate`` on batches of as many rows; what follows a stop does not count."""
    torch.manual_seed(seed)
    count = 0
    started = time.perf_counter()
    for start in range(0, len(tasks), work.rows):
        ids = torch.tensor([task.prompt_ids for task in tasks[start : start + work.rows]])
        found = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            max_new_tokens=work.max_response_tokens,
            eos_token_id=stops,
            pad_token_id=0,
            top_k=0,
            top_p=1.0,
        )
        new = found[:, ids.shape[1] :]
        ended = torch.isin(new, torch.tensor(stops))
        lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, new.shape[1])
        count += int(lengths.sum())
    return count, time.perf_counter() - started


def compare(directory: str, work: Workload, rounds: int, lora: bool) -> dict[str, Any]:
    """Both sides in turn, ``rounds`` times after one warm-up."""
    peer = build(directory, lora)
    vocabulary = peer.config.vocab_size
    stops = list(range(1, 1 + max(1, round(vocabulary / work.mean_tokens))))
    generator = torch.Generator().manual_seed(0)
    shape = (work.num_prompts, work.prompt_tokens)
    prompts = torch.randint(stops[-1] + 1, vocabulary, shape, generator=generator).tolist()
    config = adapters.peft_config(LoraConfig(r=16)) if lora else None
    engine = TransformersGenerator(
        AutoModelForCausalLM.from_pretrained(directory),
        config,
        stop_ids=tuple(stops),
        pad_id=0,
        microbatch=work.rows,
        suppress_ids=(0,),
    )
    if lora:
        state = random_adapter(peer)
        engine.install(pack(state, 0))
        adapters.write_adapter(peer, POLICY, state)
    rows = []
    for turn in range(rounds + 1):
        tasks = [PromptTask(f"{turn}.{i}", tuple(p), 10_000 * turn + i) for i, p in enumerate(prompts)]
        tokens, seconds = measure_ours(engine, tasks, work.max_response_tokens)
        peer_tokens, peer_seconds = measure_generate(peer, tasks, work, stops, turn)
        if turn:
            rows.append(
                {
                    "tokens_per_second": round(tokens / seconds, 1),
                    "generate_tokens_per_second": round(peer_tokens / peer_seconds, 1),
                    "ratio": round(tokens / seconds / (peer_tokens / peer_seconds), 3),
                    "mean_response_share": round(tokens / work.num_prompts / work.max_response_tokens, 3),
                }
            )
    return {
        "ratio_median": statistics.median(r["ratio"] for r in rows),
        "tokens_per_second_median": statistics.median(r["tokens_per_second"] for r in rows),
        "generate_tokens_per_second_median": statistics.median(r["generate_tokens_per_second"] for r in rows),
        "mean_response_share": round(statistics.mean(r["mean_response_share"] for r in rows), 3),
        "rounds": rows,
    }


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds instead of seven, with the adapter only")
    parser.add_argument("--model", help="a model directory instead of the benchmark's own")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        directory = args.model or folder
        if args.model is None:
            subprocess.run([sys.executable, str(BENCH / "make_model.py"), folder], check=True, capture_output=True)
        rounds = 3 if args.quick else 7
        result: dict[str, Any] = {"threads": args.threads, "target_ratio": 1.5}
        for name, work in WORKLOADS.items():
            for kind in ("lora",) if args.quick else ("lora", "no_adapter"):
                result[f"{name}.{kind}"] = compare(directory, work, rounds, kind == "lora")
    save("rollout-engines", result)


if __name__ == "__main__":
    main()
