"""Steps, tokens, hours and money of a run: estimates, with every assumption in one record."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from cluster.memory_model import base_tensors, dtype_bytes
from cluster.shapes import ModelShape
from rlhf.config import DpoConfig, EvaluateConfig, PpoConfig, SampleConfig, SftConfig, TrainerConfig
from rlhf.config.base import Section


@dataclass(frozen=True)
class Speed:
    """What one GPU does.

    Attributes:
        memory_gib: size of its memory.
        tflops: dense bf16 peak, from the vendor's data sheet.
        terabytes_per_second: memory bandwidth, likewise.
        utilization: share of the peak that training reaches.
        decode_ms_per_layer: time of one layer for one token of all rows, bound by kernel launches.
    """

    memory_gib: float
    tflops: float
    terabytes_per_second: float
    utilization: float = 0.35
    decode_ms_per_layer: float = 1.0


GPUS: dict[str, Speed] = {
    "t4": Speed(16, 65, 0.32),
    "a10g": Speed(24, 70, 0.6),
    "l4": Speed(24, 121, 0.3),
    "l40s": Speed(48, 362, 0.864),
    "a100-40": Speed(40, 312, 1.555),
    "a100": Speed(80, 312, 2.039),
    "h100": Speed(80, 989, 3.35),
    "h200": Speed(141, 989, 4.8),
    "b200": Speed(180, 2250, 8.0),
}
BANDWIDTH_SHARE = 0.6
"""Share of the memory bandwidth that decoding reaches."""


@dataclass(frozen=True)
class Estimate:
    """What a run takes.

    Attributes:
        steps: steps of the stage.
        tokens: tokens that pass through the model in training and decoding.
        seconds: by act (PPO: act, judge, learn; otherwise learn or act).
        gpus: GPUs held for the whole time.
        upper_bound: steps are counted with one row per sequence, and packing will lay several into one.
    """

    steps: int
    updates: int
    tokens: float
    seconds: dict[str, float]
    gpus: float
    upper_bound: bool = False

    @property
    def hours(self) -> float:
        """Wall time."""
        return sum(self.seconds.values()) / 3600

    @property
    def gpu_hours(self) -> float:
        """What is paid for: GPUs that wait count too."""
        return self.hours * self.gpus


def estimate(
    config: Section,
    shape: ModelShape,
    speed: Speed,
    gpus: float,
    num_rows: int | None,
    separate: tuple[ModelShape, ...] = (),
    critic: ModelShape | None = None,
) -> Estimate | None:
    """The run's size, or None when the number of rows is needed and unknown.

    Args:
        separate: shapes of the reward models in scorer workers.
        critic: shape of the critic's base, where it has one of its own; None: the policy's.
    """
    if isinstance(config, PpoConfig):
        return _ppo(config, shape, speed, gpus, separate, critic or shape)
    if isinstance(config, TrainerConfig):
        return _training(config, shape, speed, gpus, num_rows)
    if isinstance(config, SampleConfig | EvaluateConfig) and num_rows:
        return _sampling(config, shape, speed, gpus, num_rows)
    return None


def pass_flops(shape: ModelShape, tokens: float, length: int) -> float:
    """One forward pass: 2 per weight and token, and 4 x length x heads x head_dim per layer for attention.

    As in arXiv:2001.08361 sec. 2.1; the embedding look-up costs nothing.
    """
    weights = shape.matrices + shape.vocab * shape.hidden
    attention = 2 * length * shape.heads * shape.head_dim * shape.layers  # half of all pairs are masked
    return tokens * (2 * weights + 2 * attention)


def backward_factor(*, full: bool, checkpointing: bool) -> float:
    """Forward and backward in forward passes: inputs' gradients cost one, weights' gradients another, recomputing one.

    A frozen base needs no weight gradients; the adapters' are too small to count.
    """
    return 2.0 + (1.0 if full else 0.0) + (1.0 if checkpointing else 0.0)


def decode_seconds(config: Any, shape: ModelShape, speed: Speed, *, rows: int, response: int) -> float:
    """One batch of rows: each token reads all weights once, and launches every layer's kernels."""
    width = dtype_bytes(config.model, on_gpu=True)
    read = sum(t.bytes for t in base_tensors(shape, config.model, width))
    cache = 2 * rows * response * shape.kv_heads * shape.head_dim * width * shape.layers
    bound = (read + cache) / (speed.terabytes_per_second * 1e12 * BANDWIDTH_SHARE)
    return response * max(bound, shape.layers * speed.decode_ms_per_layer / 1e3)


def _ppo(
    config: PpoConfig,
    shape: ModelShape,
    speed: Speed,
    gpus: float,
    separate: tuple[ModelShape, ...],
    critic_shape: ModelShape,
) -> Estimate:
    batch, rollout, placement = config.batch, config.rollout, config.placement
    sequences = batch.sequences_per_step
    length = rollout.max_prompt_tokens + rollout.max_response_tokens
    tokens = float(sequences * length)
    rate = speed.tflops * 1e12 * speed.utilization * placement.num_ranks
    forward = pass_flops(shape, tokens, length) / rate
    num_models = sum(s.kind == "reward_model" for s in config.scores)
    passes = 2 + config.critic_shares_base + num_models - len(separate)
    beside = sum(pass_flops(s, tokens, length) for s in separate) / (rate / placement.num_ranks)
    trained = 2 if config.uses_critic else 1
    checkpointing = config.model.gradient_checkpointing
    policy = backward_factor(full=config.policy_weights == "full", checkpointing=checkpointing)
    critic = backward_factor(full=False, checkpointing=checkpointing)
    apart, shared = float(config.critic_is_apart), float(config.critic_shares_base)
    critic_rate = rate / placement.num_ranks * placement.num_critic_ranks
    critic_forward = pass_flops(critic_shape, tokens, length) / critic_rate
    per_worker = sequences // placement.num_rollout_workers
    rounds = -(-per_worker // rollout.microbatch_sequences)
    rows = min(per_worker, rollout.microbatch_sequences)
    seconds = {
        "act": rounds * decode_seconds(config, shape, speed, rows=rows, response=rollout.max_response_tokens),
        # at the same time
        "judge": max(passes * forward, beside / placement.num_scorer_workers, apart * critic_forward),
        "learn": batch.epochs * max((policy + shared * critic) * forward, apart * critic * critic_forward),
    }
    per_run = {act: value * config.num_steps for act, value in seconds.items()}
    total = tokens * config.num_steps * (1 + passes + apart + len(separate) + batch.epochs * trained)
    return Estimate(config.num_steps, config.num_steps * batch.epochs * config.minibatches, total, per_run, gpus)


def _training(
    config: TrainerConfig, shape: ModelShape, speed: Speed, gpus: float, num_rows: int | None
) -> Estimate | None:
    pairs = not isinstance(config, SftConfig)
    minibatch = config.batch.minibatch_sequences if isinstance(config, SftConfig) else config.batch.minibatch_pairs
    steps = config.max_steps
    if num_rows is not None:
        by_rows = max(1, math.ceil(num_rows * config.num_epochs / minibatch))
        steps = by_rows if steps is None else min(steps, by_rows)
    if steps is None:
        return None
    length = config.data.max_sequence_tokens
    tokens = float(steps * minibatch * length * (2 if pairs else 1))
    factor = backward_factor(full=config.lora is None, checkpointing=config.model.gradient_checkpointing)
    factor += isinstance(config, DpoConfig)  # the reference reads every batch, too
    rate = speed.tflops * 1e12 * speed.utilization * config.placement.num_ranks
    packed = isinstance(config, SftConfig) and config.packing
    seconds = {"learn": factor * pass_flops(shape, tokens, length) / rate}
    return Estimate(steps, steps, tokens, seconds, gpus, packed)


def _sampling(
    config: SampleConfig | EvaluateConfig, shape: ModelShape, speed: Speed, gpus: float, num_rows: int
) -> Estimate:
    answers = config.responses_per_prompt if isinstance(config, SampleConfig) else 2
    count = num_rows * answers
    response = config.sampling.max_response_tokens
    workers, rows = config.placement.num_rollout_workers, config.microbatch_sequences
    rounds = -(-count // (workers * rows))
    seconds = rounds * decode_seconds(config, shape, speed, rows=rows, response=response)
    tokens = float(count * (config.sampling.max_prompt_tokens + response))
    return Estimate(rounds, 0, tokens, {"act": seconds}, gpus)
