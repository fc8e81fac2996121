"""Parts of PPO on a 7B-shaped model on one GPU, without Ray and DeepSpeed: passes of learning and judging, decoding.

    python benchmarks/gpu_parts.py [--layers 28] [--rows 1,2,4,8] [--profile]

Random bf16 weights of Qwen2.5-7B's shape with a policy and a critic adapter (LoRA rank 16), 256 prompt and 256 response
tokens. Each pass stands beside the same pass through the model's own layers; shares are of the measured matrix peak and
count what has to be computed, recomputation left out. About a minute; nothing is read from a hub.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import save
from gpu_models import matrix_peak
from transformers import AutoModelForCausalLM, Qwen2Config

from cluster.shapes import SHAPES
from rlhf.config import LoraConfig, SamplingConfig
from rlhf.models import adapters, blocks
from rlhf.models.roles import CRITIC, POLICY, REFERENCE, RoleInit, RolesModel
from rlhf.rollout.protocol import PromptTask
from rlhf.rollout.transformers_engine import TransformersGenerator
from rlhf.weights.snapshot import pack

SHAPE = SHAPES["qwen2.5-7b"]
PROMPT, RESPONSE, WORDS = 256, 256, range(3, 150_000)
LORA = adapters.peft_config(LoraConfig(r=16, alpha=32))


def build(layers: int) -> Any:
    """Random weights, drawn on the device."""
    config = Qwen2Config(
        vocab_size=SHAPE.vocab, hidden_size=SHAPE.hidden, intermediate_size=SHAPE.intermediate,
        num_hidden_layers=layers, num_attention_heads=SHAPE.heads, num_key_value_heads=SHAPE.kv_heads,
        max_position_embeddings=4096, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("cuda"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def timed(action: Callable[[], None], *, times: int = 3) -> tuple[float, float]:
    """Seconds of one call, after another, and the most GB of tensors."""
    action()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for _ in range(times):
        action()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / times, torch.cuda.max_memory_allocated() / 1e9


class Passes:
    """Learning and judging passes of a model with roles."""

    def __init__(self, roles: RolesModel, layers: int, peak: float) -> None:
        self.roles, self.peak = roles, peak
        self.matrices, self.head = SHAPE.matrices * layers // SHAPE.layers, SHAPE.vocab * SHAPE.hidden

    def learn(self, rows: int) -> dict[str, float]:
        """Policy and critic forward and backward; the base needs no gradients of its own: twice a forward pass."""
        tokens = rows * (PROMPT + RESPONSE)
        needed = 2 * 2 * 2 * tokens * self.matrices + 2 * 2 * rows * RESPONSE * self.head
        return self._figures(needed, *timed(lambda: self._learn(rows)))

    def judge(self, rows: int) -> dict[str, float]:
        """Policy, reference and critic in one pass without gradients."""
        needed = 3 * 2 * rows * (PROMPT + RESPONSE) * self.matrices + 2 * 2 * rows * RESPONSE * self.head
        return self._figures(needed, *timed(lambda: self._judge(rows)))

    def _figures(self, needed: float, seconds: float, gigabytes: float) -> dict[str, float]:
        share = needed / seconds / self.peak
        return {"ms": round(seconds * 1e3, 1), "share_of_peak": round(share, 4), "tensors_gb": round(gigabytes, 2)}

    def _learn(self, rows: int) -> None:
        logprobs, _, values = self.roles("train", want_values=True, **_batch(rows))
        (logprobs.mean() + values.mean()).backward()

    def _judge(self, rows: int) -> None:
        with torch.no_grad():
            self.roles.read([POLICY, REFERENCE, CRITIC], **_batch(rows))

    def profile(self, rows: int) -> str:
        """Where the time of a learning pass goes."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
            self._learn(rows)
            torch.cuda.synchronize()
        return found.key_averages().table(sort_by="cuda_time_total", row_limit=30, max_name_column_width=60)


def _batch(rows: int) -> dict[str, Any]:
    ids = torch.randint(WORDS.start, WORDS.stop, (rows, PROMPT + RESPONSE), device="cuda")
    mask = torch.ones(ids.shape, dtype=torch.bool)  # in main memory, as in PPO
    return {"input_ids": ids, "attention_mask": mask, "response_ids": ids[:, PROMPT:], "temperature": 1.0}


def ways(model: Any) -> dict[str, Callable[[], None]]:
    """How layers may run: in halves, in halves that make their gates again, and as the model has them."""
    layers = [layer for layer in model.model.layers if hasattr(layer, "halves")]

    def set_all(forward: Any, *, keeps_gates: bool = True) -> None:
        for layer in layers:
            layer.forward = MethodType(forward or type(layer).forward, layer)
            layer.halves = replace(layer.halves, keeps_gates=keeps_gates)

    return {
        "halves": lambda: set_all(blocks._forward),
        "gates_again": lambda: set_all(blocks._forward, keeps_gates=False),
        "own_layers": lambda: set_all(None),
    }


def decode(make: Callable[[], Any], rows: int, tokens: int) -> dict[str, dict[str, float]]:
    """Milliseconds per token of all rows behind the prompts, launched and replayed.

    Args:
        make: gives a base; each way has an engine, and a base, of its own.
    """
    prompts = torch.randint(WORDS.start, WORDS.stop, (rows, PROMPT)).tolist()
    tasks = [PromptTask(f"t{row}", tuple(ids), seed=row) for row, ids in enumerate(prompts)]
    found = {}
    for name, graphs in (("launched", False), ("replayed", True)):
        engine = TransformersGenerator(
            make(), LORA, stop_ids=(1,), pad_id=2, microbatch=rows, suppress_ids=(2,), graphs=graphs
        )
        own = adapters.adapter_parameters(engine._model, POLICY)
        engine.install(pack({name: torch.zeros(p.shape, dtype=p.dtype) for name, p in own}, 0))
        times = []
        for limit in (2, 2, 2 + tokens // 2, 2 + tokens):  # the first is for the libraries
            torch.cuda.synchronize()
            began = time.perf_counter()
            engine.generate(tasks, SamplingConfig(max_response_tokens=limit))
            torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        late = (times[3] - times[2]) / (tokens - tokens // 2)
        found[name] = {
            "ms_per_step": round(late * 1e3, 2),
            "start_seconds": round(times[2] - times[1] - late * (tokens // 2), 2),
            "prompts_seconds": round(times[1], 2),
        }
        del engine, own
        gc.collect()
        torch.cuda.empty_cache()
    return found


def measure_passes(layers: int, rows: list[int], peak: float, *, profile: bool) -> tuple[dict[str, Any], list[int]]:
    """Learning and judging in all ways, and how many layers run in halves, and with their attention in them."""
    base, found = build(layers), dict[str, Any]()
    roles = RolesModel(base, RoleInit(LORA, critic_config=LORA)).to("cuda").eval()
    passes = Passes(roles, layers, peak)
    for name, take in ways(base).items():
        take()
        found[name] = {f"learn_{count}": passes.learn(count) for count in rows} | {"judge_8": passes.judge(8)}
        print(name, found[name], file=sys.stderr, flush=True)
        if profile:
            print(passes.profile(rows[-1]), file=sys.stderr, flush=True)
    halves = [layer.halves for layer in base.model.layers if hasattr(layer, "halves")]
    return found, [len(halves), sum(h.attention is not None for h in halves)]


def main() -> None:
    """Measures all and writes one dated file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=SHAPE.layers)
    parser.add_argument("--rows", default="1,2,4,8", help="sequences per pass of learning")
    parser.add_argument("--decode-rows", type=int, default=64)
    parser.add_argument("--decode-tokens", type=int, default=96)
    parser.add_argument("--profile", action="store_true", help="also print where a learning pass spends its time")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU: there is nothing to measure here")
    peak, rows = matrix_peak("cuda"), [int(count) for count in args.rows.split(",")]
    found, in_halves = measure_passes(args.layers, rows, peak, profile=args.profile)
    gc.collect()
    torch.cuda.empty_cache()
    device = torch.cuda.get_device_properties(0)
    result = {
        "device": {"name": device.name, "memory_gib": round(device.total_memory / 2**30, 1)},
        "matrix_peak_tflops": round(peak / 1e12, 1),
        "layers": args.layers,
        "layers_in_halves": in_halves,
        "prompt_and_response_tokens": [PROMPT, RESPONSE],
        "cases": found,
    }
    save("gpu-parts", result)  # whatever becomes of decoding
    found["decode"] = decode(lambda: build(args.layers), args.decode_rows, args.decode_tokens)
    save("gpu-parts", result)


if __name__ == "__main__":
    main()
