"""One engine over two processes that share the weights, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.tiny import build_model


def test_two_processes_hold_one_model_and_its_adapters(tmp_path: Path) -> None:
    shape = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1}
    base = build_model(tmp_path / "base", **shape)
    clean = {key: value for key, value in os.environ.items() if key != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    cores = sorted(os.sched_getaffinity(0))
    binding = f"{cores[0]}|{cores[1 % len(cores)]}"  # without it vLLM wants a memory node per process
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.vllm_parallel", str(base)],
        env={**clean, "VLLM_CPU_OMP_THREADS_BIND": binding, "VLLM_CPU_KVCACHE_SPACE": "1"},
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    verdict, worst = done.stdout.strip().splitlines()[-1].split()
    assert verdict == "differs" and float(worst) < 2e-4
