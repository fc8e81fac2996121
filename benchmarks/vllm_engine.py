"""The vLLM rollout engine: its tests against a real vLLM, and its speed inside the system against bare vLLM.

    make vllm-test            (or: .venv-vllm/bin/python benchmarks/vllm_engine.py [--quick] [--no-tests])

Runs in the venv of scripts/setup_vllm.sh, on CPUs also where there are GPUs. The speed is that of one Ray actor with
our engine, from tasks handed over by the driver to responses with log-probs, versions and hashes in the driver; bare
vLLM runs in the same actor, on the same prompts and adapter, timed inside. Bare is measured twice: with nothing asked
for but tokens, and with the seeds and log-probs that the system needs. All run in turn. A second group of two actors
checks that several engines draw the same responses as one. Writes benchmarks/vllm-engine-<date>.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "token")

import torch
from common import save
from transformers import AutoModelForCausalLM

from rlhf.config import LoraConfig, PlacementConfig, SamplingConfig
from rlhf.models import adapters
from rlhf.rollout.protocol import PromptTask, Rollout
from rlhf.rollout.vllm.engine import VllmGenerator, VllmSettings
from rlhf.weights.snapshot import Snapshot, pack
from rlhf.workers.group import WorkerGroup, share
from rlhf.workers.runtime import ray_runtime

BENCH = Path("../shared/bench")
ROOT = Path(__file__).parents[1]
STOPS = tuple(range(1, 21))
SAMPLING = SamplingConfig(max_response_tokens=64)
TARGET_RATIO = 0.9


class Engine:
    """One rollout engine in an actor."""

    def __init__(self, context: Any, directory: str) -> None:
        torch.set_num_threads(1)
        settings = VllmSettings(256, max_running=64, dtype="float32", extra={"enforce_eager": True})
        config = adapters.peft_config(LoraConfig(r=16))
        self.engine = VllmGenerator(directory, config, settings, stop_ids=STOPS, suppress_ids=(0,))

    def install(self, snapshot: Snapshot) -> tuple[str, float]:
        """Takes an adapter; returns (its hash, milliseconds)."""
        started = time.perf_counter()
        return self.engine.install(snapshot), (time.perf_counter() - started) * 1e3

    def generate(self, tasks: list[PromptTask], sampling: SamplingConfig) -> list[Rollout]:
        """What a rollout worker does."""
        return self.engine.generate(tasks, sampling)

    def bare(self, prompts: list[list[int]], seeds: list[int] | None) -> tuple[int, float]:
        """(response tokens, seconds) of vLLM alone on the same adapter."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        engine = self.engine
        adapter: Any = engine._adapter
        request = LoRARequest(adapter.text, adapter.number, "memory")
        common: dict[str, Any] = {"temperature": 1.0, "max_tokens": SAMPLING.max_response_tokens}
        common |= {"stop_token_ids": list(STOPS), "ignore_eos": True, "detokenize": False}
        params: Any = SamplingParams(**common)
        if seeds is not None:
            params = [SamplingParams(**common, seed=seed, logprobs=0) for seed in seeds]
        started = time.perf_counter()
        found = engine._llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts], params, lora_request=request, use_tqdm=False
        )
        return sum(len(one.outputs[0].token_ids) for one in found), time.perf_counter() - started


def adapter(directory: str) -> Snapshot:
    """A random adapter of the model."""
    model = adapters.attach(
        AutoModelForCausalLM.from_pretrained(directory), adapters.peft_config(LoraConfig(r=16)), "x"
    )
    generator = torch.Generator().manual_seed(0)
    return pack(
        {k: torch.randn(p.shape, generator=generator) * 0.02 for k, p in adapters.adapter_parameters(model, "x")}, 0
    )


def tasks_of(turn: int, count: int) -> list[PromptTask]:
    """New prompts each turn, so that no side finds the other's prefixes."""
    generator = torch.Generator().manual_seed(turn)
    rows = torch.randint(21, 512, (count, 32), generator=generator).tolist()
    return [PromptTask(f"{turn}.{i}", tuple(row), 1000 * turn + i) for i, row in enumerate(rows)]


def measure(directory: str, rounds: int, count: int) -> dict[str, Any]:
    """Speeds in turn, and two engines against one."""
    placement = PlacementConfig(cpus_per_worker=0.1, start_timeout_seconds=400)
    published = adapter(directory)
    rates: dict[str, list[float]] = {"system": [], "bare": [], "bare_with_seeds_and_logprobs": []}
    with ray_runtime(placement, num_workers=3), tempfile.TemporaryDirectory() as folder:
        launch: dict[str, Any] = {"placement": placement, "run_dir": folder, "args": (directory,)}
        one = WorkerGroup.launch("vllm_engine:Engine", "rollout", size=1, **launch)
        sha, milliseconds = one.call("install", share(published))[0]
        assert_equal(sha, published.sha256, "hash")
        for turn in range(rounds + 1):
            sides = [tasks_of(3 * turn + side, count) for side in range(3)]
            started = time.perf_counter()
            drawn = one.call("generate", sides[0], SAMPLING)[0]
            seconds = {"system": time.perf_counter() - started}
            tokens = {"system": sum(len(r.response_ids) for r in drawn)}
            prompts = [[list(task.prompt_ids) for task in side] for side in sides]
            seeds = [task.seed for task in sides[2]]
            tokens["bare"], seconds["bare"] = one.call("bare", prompts[1], None)[0]
            name = "bare_with_seeds_and_logprobs"
            tokens[name], seconds[name] = one.call("bare", prompts[2], seeds)[0]
            if turn:
                for key in rates:
                    rates[key].append(tokens[key] / seconds[key])
        whole = tasks_of(99, 32)
        expected = one.call("generate", whole, SAMPLING)[0]
        one.close()
        two = WorkerGroup.launch("vllm_engine:Engine", "rollout", size=2, **launch)
        two.call("install", share(published))
        parts = two.scatter("generate", [(whole[:16], SAMPLING), (whole[16:], SAMPLING)])
        two.close()
    assert_equal([r.response_ids for part in parts for r in part], [r.response_ids for r in expected], "responses")
    ratios = {key: statistics.median(a / b for a, b in zip(rates["system"], rates[key], strict=True)) for key in rates}
    return {
        "install_ms": round(milliseconds, 1),
        "tokens_per_second": {key: round(statistics.median(value), 1) for key, value in rates.items()},
        "ratio_to_bare": round(ratios["bare"], 3),
        "ratio_to_bare_with_seeds_and_logprobs": round(ratios["bare_with_seeds_and_logprobs"], 3),
        "target_ratio": TARGET_RATIO,
        "two_engines_draw_what_one_draws": True,
        "rounds": {key: [round(v, 1) for v in value] for key, value in rates.items()},
    }


def assert_equal(found: object, expected: object, what: str) -> None:
    """Ends the benchmark when its sides do not do the same."""
    if found != expected:
        raise SystemExit(f"{what} differ: {found!r:.300} against {expected!r:.300}")


def run_tests() -> dict[str, Any]:
    """Runs tests/vllm_engine; its last line and exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/vllm_engine", "--tb=short", "-W", "ignore"],
        cwd=ROOT, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    sys.stderr.write(done.stdout)
    return {"exit_code": done.returncode, "summary": done.stdout.strip().splitlines()[-1]}


def main() -> None:
    """Tests, then measures, then writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds instead of seven")
    parser.add_argument("--no-tests", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tests and actors compare in float32, and the venv's vLLM is for CPUs
    import vllm

    result: dict[str, Any] = {"vllm": vllm.__version__}
    if not args.no_tests:
        result["tests"] = run_tests()
        if result["tests"]["exit_code"]:
            raise SystemExit("tests/vllm_engine failed")
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([sys.executable, str(BENCH / "make_model.py"), directory], check=True, capture_output=True)
        result |= measure(directory, 3 if args.quick else 7, 128)
    save("vllm-engine", result)


if __name__ == "__main__":
    main()
