"""PPO on a GPU: random models of 0.5B, 7B and 1.5B parameters in bf16 and nf4, time and memory beside the plan's.

    python benchmarks/gpu.py [--minutes 8] [--shapes qwen2.5-0.5b,llama-7b,...] [--precisions bf16,nf4]
    python benchmarks/gpu.py --device cpu --shapes tiny     the same way through the code, without a GPU

Whole PPO steps of the real system (Ray, one DeepSpeed rank and one rollout worker that share the GPU, critic, reference
and reward model on one base), 256 prompt and 256 response tokens. Figures are given per 1 024 prompts and come from
steps of fewer. A case that does not fit into memory (as ``rlhf plan`` says), onto the disk or into the time that is
left is skipped, and the result says why; one that runs out of time leaves the steps that it has finished. The file is
written after every case; the first shape's come first, then one of each other shape.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

NEEDED = (
    "accelerate", "deepspeed", "peft", "psutil", "pydantic", "ray", "rich", "safetensors", "torch", "transformers",
    "xxhash", "yaml",
)  # fmt: skip
CASE_SECONDS = 150.0
"""The most that one case gets, its start included."""
GRACE_SECONDS = 10.0
"""For a case that was told to end; what it started ends with it."""


def missing_packages(names: tuple[str, ...]) -> list[str]:
    """Those that are not installed."""
    return [name for name in names if importlib.util.find_spec(name) is None]


class DevicePeak:
    """The most memory of the GPU that was in use while open, by all processes, beyond what was at the beginning."""

    def __init__(self, device: str) -> None:
        self._on = device == "cuda"
        self._ended = threading.Event()
        self._before = self._most = 0.0

    def __enter__(self) -> DevicePeak:
        if self._on:
            self._before = self._most = self._used()
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._on:
            self._thread.join()

    @property
    def bytes(self) -> float | None:
        """None without a GPU."""
        return self._most - self._before if self._on else None

    def _run(self) -> None:
        while not self._ended.wait(0.02):
            self._most = max(self._most, self._used())

    @staticmethod
    def _used() -> float:
        import torch

        free, total = torch.cuda.mem_get_info()
        return float(total - free)

    @classmethod
    def settle(cls) -> None:
        """Waits, within a bound, until what the last case held is free again."""
        for _ in range(20):
            before = cls._used()
            time.sleep(0.5)
            if cls._used() == before:
                return


def room_left(device: str, folder: Path, deadline: float) -> Any:
    """What the next case may use."""
    import psutil
    import torch
    from gpu_cases import Room

    if device == "cuda":
        DevicePeak.settle()
    host = float(psutil.virtual_memory().available)
    gpu = float(torch.cuda.mem_get_info()[0]) if device == "cuda" else host
    return Room(gpu, host, float(shutil.disk_usage(folder).free), deadline - time.monotonic())


def run_case(tree: dict[str, Any], device: str, folder: Path, seconds: float) -> tuple[list[Any], str | None, Any]:
    """Runs a case in a process of its own; (finished steps, why it ended early, the device's peak in bytes)."""
    order, output, log = (folder / name for name in ("order.json", "steps.json", "log.txt"))
    output.unlink(missing_ok=True)
    order.write_text(json.dumps({"config": tree, "output": str(output)}), encoding="utf-8")
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {"RAY_AUTH_MODE": "token", **os.environ, "PYTHONPATH": path}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_run.py"), str(order)]
    early = None
    with log.open("w", encoding="utf-8") as handle, DevicePeak(device) as peak:
        child = subprocess.Popen(command, env=environment, stdout=handle, stderr=subprocess.STDOUT)
        try:
            if child.wait(timeout=seconds):
                early = f"failed: {log.read_text(encoding='utf-8', errors='replace')[-2000:]}"
        except subprocess.TimeoutExpired:
            early = f"stopped after {seconds:.0f} s"
            child.terminate()
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=GRACE_SECONDS)
        finally:
            child.kill()
            child.wait()
    steps = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else []
    return steps, early, peak.bytes


def measure(work: Any, precision: str, shape: Any, folder: Path, seconds: float, planned: Any, peak: float) -> dict:
    """One case from its start to its figures, within some seconds."""
    from gpu_cases import MEMORY_WANTED, config_tree, memory_figures, speed_figures

    from rlhf.telemetry.metrics import read_metrics

    report, shares = planned
    tree = config_tree(work, precision, folder, shares=shares)
    began = time.monotonic()
    steps, early, device_peak = run_case(tree, work.device, folder, seconds)
    found: dict[str, Any] = {"seconds_in_all": round(time.monotonic() - began, 1)}
    if device_peak is not None:
        found["gpu_shares"] = dict(zip(("rank", "rollout_worker"), shares, strict=True))
    if early is not None:
        found["ended_early"] = early
    if steps:
        found["memory"] = memory_figures(report, [step["memory"] for step in steps], device_peak)
        limit = MEMORY_WANTED.get(f"{shape.name}-{precision}")
        if limit is not None and device_peak is not None:
            found["memory"]["limit"] = {"wanted_gb": limit / 1e9, "measured_gb": round(device_peak / 1e9, 2)}
    if len(steps) > 1:
        spent = [after["ended"] - before["goes_on"] for before, after in pairwise(steps)]
        rows = read_metrics(Path(tree["run_dir"]))[1 : len(steps)]
        found |= speed_figures(work, shape, rows, spent, peak)
    return found


def run_cases(work: Any, cases: list[tuple[Any, str]], place: Path, deadline: float, peak: float) -> Iterator[dict]:
    """The figures of each case as it ends, by its name.

    A shape's weights are written when its first case is sure to run, and deleted after its last.
    """
    from gpu_cases import plan_case, seconds_of, why_skipped

    missing, undrawn = missing_packages(("bitsandbytes",)), dict[str, str]()
    for index, (shape, precision) in enumerate(cases):
        folder, room = place / shape.name, room_left(work.device, place, deadline)
        if folder.is_dir():  # the weights are there already
            room = replace(room, disk=float("inf"))
        planned = plan_case(work, precision, shape, room.gpu)
        reason = undrawn.get(shape.name) or why_skipped(precision, shape, planned[0], room, missing)
        if reason is None and not folder.is_dir():
            reason = draw(work, shape, folder, room)
            if reason is not None:
                undrawn[shape.name] = reason
        if reason is not None:
            found = {"skipped": reason}
        else:
            seconds = seconds_of(cases, index, deadline - time.monotonic(), CASE_SECONDS, GRACE_SECONDS)
            found = measure(work, precision, shape, folder, seconds, planned, peak)
        if shape not in [later for later, _ in cases[index + 1 :]]:
            shutil.rmtree(folder, ignore_errors=True)
        print(f"{shape.name}-{precision}", json.dumps(found), file=sys.stderr)
        yield {f"{shape.name}-{precision}": found}


def draw(work: Any, shape: Any, folder: Path, room: Any) -> str | None:
    """Writes a shape's weights; why it could not, and then nothing is left of them."""
    from gpu_cases import why_not_drawn
    from gpu_models import build

    reason = why_not_drawn(shape, room)
    if reason is not None:
        return reason
    try:
        build(work, shape, folder)
    except (RuntimeError, OSError) as error:  # torch's want of memory is a RuntimeError
        reason = f"its weights could not be written: {type(error).__name__}: {error}"
    if reason is not None:
        shutil.rmtree(folder, ignore_errors=True)
        give_back()
    return reason


def give_back() -> None:
    """What a failure has left on the device goes back."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def describe_device(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    if device == "cpu":
        return {"kind": "cpu", "threads": torch.get_num_threads()}
    found = torch.cuda.get_device_properties(0)
    return {"kind": "cuda", "name": found.name, "memory_gib": round(found.total_memory / 2**30, 1)}


def prepare(device: str) -> None:
    """Ends with a sentence where the benchmark cannot run at all; leaves one GPU in sight of every process."""
    if missing := missing_packages(NEEDED):
        sys.exit(f"not installed: {', '.join(missing)}; 'make setup' installs everything")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU; --device cpu --shapes tiny takes the same way through the code without one")


def main() -> None:
    """Runs the cases and writes one dated file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shapes", help="names of cluster/shapes.py, or tiny")
    parser.add_argument("--precisions", default="bf16,nf4")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    parser.add_argument("--prompts", type=int, help="per step")
    parser.add_argument("--microbatch", type=int, help="sequences per pass in judging and learning")
    parser.add_argument("--epochs", type=int, help="of learning")
    parser.add_argument("--steps", type=int, help="per case, the first of which is left out")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--keep", action="store_true", help="feed-forwards keep what the way back needs")
    parser.add_argument("--directory", help="where models are written (default: the system's temporary directory)")
    args = parser.parse_args()
    began = time.monotonic()
    prepare(args.device)
    from common import save
    from gpu_cases import DEFAULT_SHAPES, KNOWN, PRECISIONS, Work, assemble, in_turn
    from gpu_models import matrix_peak

    names, precisions = args.shapes.split(",") if args.shapes else list(DEFAULT_SHAPES), args.precisions.split(",")
    if unknown := [name for name in names if name not in KNOWN] + [p for p in precisions if p not in PRECISIONS]:
        parser.error(f"not known: {', '.join(unknown)}; shapes: {', '.join(KNOWN)}; precisions: bf16, nf4")
    work = Work(device=args.device, checkpointing=args.checkpointing, recompute=not args.keep)
    if names == ["tiny"]:
        work = replace(work, prompts=8, prompt_tokens=16, response_tokens=16, microbatch=2, steps=3)
    given = {key: getattr(args, key) for key in ("prompts", "microbatch", "epochs", "steps")}
    work = replace(work, **{key: value for key, value in given.items() if value is not None})
    if work.steps < 2:
        parser.error("--steps must be at least 2: the first one is left out")
    peak, found = matrix_peak(args.device), dict[str, Any]()
    cases, deadline = in_turn([KNOWN[name] for name in names], precisions), began + 60 * args.minutes - GRACE_SECONDS
    with tempfile.TemporaryDirectory(prefix="gpu-", dir=args.directory) as place:
        for case in run_cases(work, cases, Path(place), deadline, peak):
            found |= case
            result = assemble(work, describe_device(args.device), peak, time.monotonic() - began, found)
            save("gpu" if args.device == "cuda" else "gpu-on-cpu", result)  # whatever becomes of the next


if __name__ == "__main__":
    main()
