"""What benchmarks/gpu.py runs, by arithmetic alone: shapes, configs, what is skipped and why, figures of a case."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.memory_model import adapter_tensors, base_tensors, elements
from cluster.plan import Report, make_plan, verdict
from cluster.plan_cost import Speed
from cluster.plan_roles import GIB, RolePlan, Setting
from cluster.shapes import SHAPES, ModelShape
from rlhf.config import ModelConfig, PpoConfig, build_config
from rlhf.models.operations import UpdateCosts
from rlhf.models.role_shares import pass_operations
from rlhf.models.roles import CRITIC, POLICY, REFERENCE, REWARD

TINY = ModelShape(
    vocab=2048, hidden=64, intermediate=192, layers=2, heads=4, kv_heads=2, head_dim=16, tied=True, qkv_bias=True,
    name="tiny",
)  # fmt: skip
KNOWN = {shape.name: shape for shape in (TINY, *SHAPES.values()) if not shape.qk_norm}
DEFAULT_SHAPES = ("qwen2.5-7b", "qwen2.5-0.5b", "qwen2.5-1.5b")
"""In the order in which they are missed when time runs out (``in_turn``)."""
PRECISIONS = ("bf16", "nf4")
PARTS = {"bf16": 1, "nf4": 2}
"""By what rows that are decoded or learned from together are divided, so that a case stays within its memory."""
MEMORY_WANTED = {"qwen2.5-7b-bf16": 30e9, "qwen2.5-7b-nf4": 16e9, "llama-7b-bf16": 30e9, "llama-7b-nf4": 16e9}
LEARN_SHARE_WANTED = 0.4
"""Bytes of the whole device, and share of the matrix peak in learning, that the project asks for."""
PROMPTS = 1024
"""Figures are given per so many prompts."""
PHASES = {"act": "generate", "judge": "judge", "learn": "learn", "share": "sync"}
"""A metrics row's names, and the names here."""
ROLES = {"trainer": "policy", "rollout": "rollout"}
"""The plan's names of the processes, and the run's."""
WANTED = 0.15
START_SECONDS, SECONDS_PER_GIB = 40.0, 5.0
"""What a case takes before its first step: processes, imports; reading, hashing and loading the weights."""


@dataclass(frozen=True)
class Work:
    """One step draws ``prompts`` responses and learns from them; the first of ``steps`` is left out."""

    device: str = "cuda"
    prompts: int = 128
    prompt_tokens: int = 256
    response_tokens: int = 256
    minibatches: int = 2
    microbatch: int = 8
    epochs: int = 1
    steps: int = 2
    lora_r: int = 16
    checkpointing: bool = False
    recompute: bool = True


@dataclass(frozen=True)
class Room:
    """What is left on the machine: bytes, and seconds of this benchmark."""

    gpu: float
    host: float
    disk: float
    seconds: float


def config_tree(work: Work, precision: str, folder: Path, *, shares: tuple[float, float] = (0.5, 0.5)) -> dict:
    """The config of a run; rank and rollout worker share one GPU."""
    minibatch, part = work.prompts // work.minibatches, PARTS[precision]
    on_gpu, quantization = work.device == "cuda", "nf4" if precision == "nf4" else "none"
    threads = min(8, max(1, (os.cpu_count() or 1) // 2)) if on_gpu else 1  # models are put together on the CPU
    placement: dict[str, Any] = {"layout": "colocated", "start_timeout_seconds": 300, "threads_per_worker": threads}
    placement |= dict(zip(("gpus_per_rank", "gpus_per_rollout_worker"), shares if on_gpu else (0, 0), strict=True))
    return {
        "run_dir": str(folder / f"run-{precision}"),
        "model": {
            "name": str(folder / "model"),
            "chat_style": "plain",
            "dtype": "bfloat16",
            "quantization": quantization,
            "gradient_checkpointing": work.checkpointing,
        },
        "roles": {"recompute_feed_forward": work.recompute and on_gpu},
        "prompts": str(folder / "prompts.jsonl"),
        "scores": [{"kind": "reward_model", "run": str(folder / f"reward-{quantization}")}],
        "lora": {"r": work.lora_r, "alpha": 2 * work.lora_r},
        "optim": {"learning_rate": 1e-5, "schedule": "constant"},
        "checkpoint": {"every": 10**6},
        "num_steps": work.steps,
        "rollout": {
            "max_prompt_tokens": work.prompt_tokens,
            "max_response_tokens": work.response_tokens,
            "microbatch_sequences": max(1, work.prompts // part),
        },
        "placement": placement,
        "batch": {
            "prompts_per_step": work.prompts,
            "responses_per_prompt": 1,
            "minibatch_sequences": minibatch,
            "microbatch_sequences_per_gpu": max(1, work.microbatch // part),
            "epochs": work.epochs,
        },
        "telemetry": {"tensorboard": False},
        # bf16 sums in another order: a random model is no place to look for faults of a hundredth of a nat
        "sync_tolerance": 2.0,
        "ratio_tolerance": 0.5,
        "mismatch_limit": 0.5,
    }


def plan_case(work: Work, precision: str, shape: ModelShape, gpu_bytes: float) -> tuple[Report, tuple[float, float]]:
    """What ``rlhf plan`` says about the case on a GPU with so much memory, and the shares of it that it plans with."""
    speed, gpus = Speed(gpu_bytes / GIB, 1.0, 1.0), 1 if work.device == "cuda" else 0
    shares = (0.5, 0.5)
    for _ in range(2):  # the first plan tells how to share
        config = build_config(
            PpoConfig, config_tree(work, precision, Path("plan/case"), shares=shares), source="benchmark"
        )
        report, used = make_plan(config, shape=shape, gpus=gpus, speed=speed), shares
        shares = shares_of(report.roles)
    return report, used


def shares_of(roles: Sequence[RolePlan]) -> tuple[float, float]:
    """How trainer and rollout worker divide a GPU: by what they need, in hundredths (Ray takes four digits)."""
    first, second = (role.memory.total for role in roles)
    part = min(99, max(1, round(100 * first / (first + second))))
    return part / 100, (100 - part) / 100


def weight_bytes(shape: ModelShape) -> float:
    """Bytes of the model's bf16 weights."""
    return sum(t.bytes for t in base_tensors(shape, ModelConfig(name=shape.name), 2))


def why_skipped(precision: str, shape: ModelShape, report: Report, room: Room, missing: Sequence[str]) -> str | None:
    """Why a case is left out, or None."""
    if precision == "nf4" and "bitsandbytes" in missing:
        return "bitsandbytes is not installed"
    if not report.fits and report.needed:
        return f"rlhf plan, {room.gpu / GIB:.1f} GiB free: {' '.join(verdict(report))}"
    size = weight_bytes(shape)
    for name, have in (("disk", room.disk), ("main memory", room.host)):
        if have < 1.2 * size:
            return f"{1.2 * size / GIB:.1f} GiB of {name} are needed for the weights, {have / GIB:.1f} are free"
    least = least_seconds(shape)
    if room.seconds < least:
        return f"{room.seconds:.0f} s are left, it takes at least {least:.0f} s"
    return None


def why_not_drawn(shape: ModelShape, room: Room) -> str | None:
    """Why a shape's weights cannot be drawn on the device, or None."""
    size = weight_bytes(shape)
    if room.gpu < size:
        return f"{size / GIB:.1f} GiB of the device are needed to draw the weights, {room.gpu / GIB:.1f} are free"
    return None


def least_seconds(shape: ModelShape) -> float:
    """What a case of a shape takes if its steps took nothing."""
    return START_SECONDS + SECONDS_PER_GIB * weight_bytes(shape) / GIB


def in_turn(shapes: Sequence[ModelShape], precisions: Sequence[str]) -> list[tuple[ModelShape, str]]:
    """All cases: those of the first shape, then one of each other shape, so that every shape gets a figure."""
    first, *others = shapes
    return [(first, precision) for precision in precisions] + [(s, p) for p in precisions for s in others]


def seconds_of(cases: Sequence[tuple[ModelShape, str]], index: int, left: float, most: float, grace: float) -> float:
    """How long a case may take: ``most``, less where shapes that have no figure yet would come off badly.

    Args:
        left: of the whole benchmark.
        grace: added to what each case needs at least.
    """
    begun = {shape.name for shape, _ in cases[: index + 1]}
    waiting = {shape.name: shape for shape, _ in cases[index + 1 :] if shape.name not in begun}
    kept_back = sum(least_seconds(shape) + grace for shape in waiting.values())
    fair = max(left - grace - kept_back, least_seconds(cases[index][0]))
    return min(most, left - grace, fair)


def operations(work: Work, shape: ModelShape, response: float) -> dict[str, float]:
    """Floating-point operations that a step's phases need, over real tokens (see rlhf/models/operations.py).

    Generation is one pass with a cache; judging one of each of the four roles, two of which need logits.
    """
    adapter = elements(adapter_tensors(shape, lora_of(work), 2))
    width, head = shape.heads * shape.head_dim * shape.layers, shape.vocab * shape.hidden
    tail = shape.hidden * (shape.heads * shape.head_dim + 3 * shape.intermediate)
    tails = (adapter * tail * shape.layers // shape.matrices,) * 2
    costs = UpdateCosts(shape.matrices, (adapter, adapter + shape.hidden + 1), head, width, False, tail, tails)
    lengths = [round(work.prompt_tokens + response)] * work.prompts
    tokens, pairs, drawn = sum(lengths), sum(n**2 for n in lengths), round(work.prompts * response)
    judging = pass_operations(costs, (POLICY, REFERENCE, CRITIC, REWARD), lengths, drawn, trained=False)
    return {
        "generate": float(2 * ((shape.matrices + adapter) * tokens + width * pairs + head * drawn)),
        "judge": sum(judging.values()),
        "learn": work.epochs * costs.update(lengths, drawn),
    }


def lora_of(work: Work) -> Any:
    """The adapter's config."""
    return build_config(PpoConfig, config_tree(work, "bf16", Path("plan/case")), source="benchmark").lora


def speed_figures(
    work: Work, shape: ModelShape, rows: Sequence[Mapping[str, Any]], seconds: Sequence[float], peak: float
) -> dict[str, Any]:
    """Seconds per 1 024 prompts, tokens and operations per second of the measured steps.

    ``learn_in_worker`` is what the rank itself measured, beside a peak of its own.

    Args:
        rows: metrics rows of the measured steps; ``seconds`` their whole wall times.
        peak: operations per second of a large bf16 matrix product.
    """
    spent = {name: statistics.mean(row[f"seconds.{act}"] for row in rows) for act, name in PHASES.items()}
    whole, response = statistics.mean(seconds), statistics.mean(row["response_tokens_mean"] for row in rows)
    spent["other"] = max(0.0, whole - sum(spent.values()))
    needed = operations(work, shape, response)
    rates = {name: needed[name] / spent[name] for name in needed} | {"step": sum(needed.values()) / whole}
    tokens = work.prompts * (work.prompt_tokens + response)
    return {
        "steps_measured": len(rows),
        "step_seconds": round(whole, 3),
        "seconds_per_1024_prompts": {k: round(v * PROMPTS / work.prompts, 2) for k, v in spent.items()}
        | {"total": round(whole * PROMPTS / work.prompts, 2)},
        "mean_response_tokens": round(response, 1),
        "tokens_per_second": {
            "generate": round(work.prompts * response / spent["generate"], 1),
            "judge": round(tokens / spent["judge"], 1),
            "learn": round(tokens * work.epochs / spent["learn"], 1),
            "step": round(tokens / whole, 1),
        },
        "tflops": {k: round(v / 1e12, 4) for k, v in rates.items()},
        "share_of_peak": {k: round(v / peak, 4) for k, v in rates.items()},
        "learn_in_worker": {
            "tflops": round(statistics.mean(row["speed.learn_tflops"] for row in rows), 4),
            "share_of_peak": round(statistics.mean(row["speed.learn_peak_share"] for row in rows), 4),
            "wanted": LEARN_SHARE_WANTED,
        },
        "adapter_sync": {
            "milliseconds": round(statistics.median(row["sync.milliseconds"] for row in rows), 1),
            "bytes": int(rows[-1]["sync.bytes"]),
        },
    }


def memory_figures(
    report: Report, readings: Sequence[Mapping[str, Mapping[str, float]]], device_peak: float | None
) -> dict[str, Any]:
    """What ``rlhf plan`` predicted beside what was measured, as predicted / measured.

    Compared is live tensors by role; on the device as a whole stand also CUDA's contexts, libraries' buffers and what
    torch keeps for itself between allocations.

    Args:
        readings: by role, as ``gpu_run.read_memory`` gives them, after every step; peaks since the one before.
        device_peak: bytes that the device had in use beyond those before the run; None without a GPU.
    """
    runtime = Setting().runtime_bytes if report.needed else 0.0
    found: dict[str, Any] = {}
    for planned in report.roles:
        role, predicted = ROLES[planned.role], planned.memory.total - runtime
        peaks = {key: max(one[role][key] for one in readings) for key in readings[0][role]}
        found[role] = {"predicted_gib": _gib(predicted)} | {f"{key}_gib": _gib(value) for key, value in peaks.items()}
        if "tensors" in peaks:
            found[role]["ratio"] = round(predicted / peaks["tensors"], 3)
    if device_peak is None:
        return {**found, "comparison": "none: on a CPU a process's peak holds its libraries too"}
    total = device_bytes(report.roles)
    found["device"] = {
        "predicted_gib": _gib(total), "measured_gib": _gib(device_peak), "ratio": round(total / device_peak, 3)
    }  # fmt: skip
    ratios = [part["ratio"] for part in found.values()]
    return {**found, "wanted": WANTED, "within": all(abs(ratio - 1) <= WANTED for ratio in ratios)}


def device_bytes(roles: Sequence[RolePlan]) -> float:
    """What processes that share one GPU take together: working memory goes back before the next begins its own."""
    working = [(r.memory.activations, r.memory.kv_cache + max(0.0, r.memory.workspace)) for r in roles]
    shared = Setting().runtime_bytes
    resident = sum(r.memory.total for r in roles) - sum(map(sum, working)) + shared * len(roles)
    return resident + max(activations + beside - shared for activations, beside in working)


def assemble(work: Work, gpu: Mapping[str, Any], peak: float, seconds: float, cases: Mapping[str, Any]) -> dict:
    """The whole result."""
    return {
        "device": dict(gpu),
        "matrix_peak_tflops": round(peak / 1e12, 4),
        "scaled": f"figures per {PROMPTS} prompts are those of steps of {work.prompts}, multiplied by "
        f"{PROMPTS / work.prompts:g}; the first step is left out; {work.epochs} epoch(s) of learning",
        "seconds": round(seconds, 1),
        "workload": asdict(work),
        "cases": dict(cases),
    }


def _gib(value: float) -> float:
    return round(value / GIB, 4)
