"""Figures of a run as Ray metrics, which Prometheus scrapes from every node.

The ports that serve them ask for no token, so no prompt, path, or name of a person or run is ever a label: a run is
known by a short hash of its directory. Outside a Ray runtime every function does nothing.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import ray
from ray.util.metrics import Counter, Gauge

PREFIX = "ray_"
"""Ray puts this before every name it exports."""
PHASES = ("act", "judge", "learn", "share")


@dataclass(frozen=True)
class Figure:
    """One metric.

    Attributes:
        key: where it stands in a step's values, empty when it is reported otherwise.
        label: a label beside stage and run, empty for none.
    """

    kind: Literal["counter", "gauge"]
    description: str
    key: str = ""
    label: str = ""


FIGURES: dict[str, Figure] = {
    "rlhf_steps_total": Figure("counter", "Steps done"),
    "rlhf_nonfinite_steps_total": Figure("counter", "Steps with a figure that is not finite"),
    "rlhf_restarts_total": Figure("counter", "Workers started again after a failure", label="role"),
    "rlhf_queue_depth": Figure("gauge", "Work that waits for a role", label="role"),
    "rlhf_step_seconds": Figure("gauge", "Seconds of the last step by act", label="phase"),
    "rlhf_tokens_per_second": Figure("gauge", "Response tokens drawn, judged and learned per second"),
    "rlhf_score_mean": Figure("gauge", "Mean score of the step's responses", "score_mean"),
    "rlhf_reward_mean": Figure("gauge", "Mean score minus the KL penalty", "reward_mean"),
    "rlhf_kl": Figure("gauge", "KL to the reference, nats per response", "kl"),
    "rlhf_kl_limit": Figure("gauge", "KL at which the run stops", "kl_limit"),
    "rlhf_entropy": Figure("gauge", "Entropy of the policy, nats per token", "entropy"),
    "rlhf_loss": Figure("gauge", "Training loss", "loss"),
    "rlhf_policy_loss": Figure("gauge", "Loss of the policy", "policy_loss"),
    "rlhf_value_loss": Figure("gauge", "Loss of the critic", "value_loss"),
    "rlhf_grad_norm": Figure("gauge", "Gradient norm before clipping", "grad_norm"),
    "rlhf_clip_fraction": Figure("gauge", "Share of tokens whose update was cut off", "clip_fraction"),
    "rlhf_explained_variance": Figure("gauge", "Explained variance of the critic", "explained_variance"),
    "rlhf_response_tokens_mean": Figure("gauge", "Mean length of responses", "response_tokens_mean"),
    "rlhf_eos_rate": Figure("gauge", "Share of responses that ended by themselves", "eos_rate"),
    "rlhf_adapter_version": Figure("gauge", "Version of the published adapter", "adapter_version"),
    "rlhf_sync_logprob_diff": Figure("gauge", "Largest log-prob difference after the sync", "sync.max_logprob_diff"),
    "rlhf_sync_milliseconds": Figure("gauge", "Time to publish and take an adapter", "sync.milliseconds"),
    "rlhf_sync_bytes": Figure("gauge", "Bytes of an adapter", "sync.bytes"),
}
_lock = threading.Lock()


def report_step(
    values: Mapping[str, Any], *, stage: str = "ppo", run_dir: str | Path = "", num_sequences: int | None = None
) -> None:
    """Reports one step: call it with the values that go to ``metrics.jsonl``.

    Args:
        values: numbers by name, nested mappings allowed; what is unknown or no number is left out.
        stage: ``"sft"``, ``"reward"``, ``"ppo"`` ...
        run_dir: only its hash becomes a label.
        num_sequences: responses of the step, for tokens per second.
    """
    if not ray.is_initialized():
        return
    flat = _flatten(values)
    labels = {"stage": stage, "run": run_label(run_dir)}
    numbers = {k: float(v) for k, v in flat.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    _add("rlhf_steps_total", labels)
    # without a critic its explained variance is no number, and nothing is wrong
    if not all(math.isfinite(v) for k, v in numbers.items() if k != "explained_variance"):
        _add("rlhf_nonfinite_steps_total", labels)
    for name, figure in FIGURES.items():
        if figure.key in numbers:
            _set(name, numbers[figure.key], labels)
    seconds = {phase: numbers[f"seconds.{phase}"] for phase in PHASES if f"seconds.{phase}" in numbers}
    for phase, value in seconds.items():
        _set("rlhf_step_seconds", value, {**labels, "phase": phase})
    if num_sequences is not None and "response_tokens_mean" in numbers and sum(seconds.values()) > 0:
        tokens = num_sequences * numbers["response_tokens_mean"]
        _set("rlhf_tokens_per_second", tokens / sum(seconds.values()), labels)


def report_restart(role: str, *, stage: str = "ppo", run_dir: str | Path = "", count: int = 1) -> None:
    """Counts workers of a role that were started again."""
    if ray.is_initialized():
        _add("rlhf_restarts_total", {"stage": stage, "run": run_label(run_dir), "role": role}, count)


def report_queue(role: str, depth: int, *, stage: str = "ppo", run_dir: str | Path = "") -> None:
    """Reports how much work waits for a role."""
    if ray.is_initialized():
        _set("rlhf_queue_depth", depth, {"stage": stage, "run": run_label(run_dir), "role": role})


def run_label(run_dir: str | Path) -> str:
    """Eight hexadecimal digits that stand for a run directory; empty for none."""
    text = str(run_dir)
    return hashlib.sha256(str(Path(text).absolute()).encode()).hexdigest()[:8] if text else ""


def exported_names() -> frozenset[str]:
    """Names under which Prometheus finds the metrics."""
    return frozenset(PREFIX + name for name in FIGURES)


@cache
def _metric(name: str) -> Any:
    figure = FIGURES[name]
    keys = ("stage", "run", figure.label) if figure.label else ("stage", "run")
    make = Counter if figure.kind == "counter" else Gauge
    return make(name, description=figure.description, tag_keys=keys)


def _add(name: str, labels: dict[str, str], count: int = 1) -> None:
    with _lock:
        _metric(name).inc(count, tags=labels)


def _set(name: str, value: float, labels: dict[str, str]) -> None:
    if math.isfinite(value):
        with _lock:
            _metric(name).set(value, tags=labels)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + str(key)] = value
    return flat
