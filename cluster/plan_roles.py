"""What each process of a stage holds: from a config and a model's shape to bytes per role."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from cluster.activations import (
    decoding_workspace,
    kv_cache,
    packs,
    pass_activations,
    ppo_peak,
    reading_workspace,
)
from cluster.memory_model import (
    Memory,
    Tensors,
    adapter_tensors,
    base_tensors,
    dtype_bytes,
    gathered_workspace,
    resident,
    training_state,
)
from cluster.shapes import ModelShape
from rlhf.config import (
    DpoConfig,
    EvaluateConfig,
    LoraConfig,
    ModelConfig,
    PpoConfig,
    RewardConfig,
    SampleConfig,
    SftConfig,
    TrainerConfig,
)
from rlhf.config.base import Section
from rlhf.errors import ConfigError

GIB = 2**30
LOSS_CHUNK_ROWS = 256
"""Rows of logits that the SFT loss holds at a time: it projects in tiles and never holds all logits."""
SCORER_ROWS = 16
"""Sequences that a scorer worker reads in one pass."""


@dataclass(frozen=True)
class RolePlan:
    """One kind of process.

    Attributes:
        processes: how many there are.
        gpus_each: GPUs that one takes; below 1 when several share a GPU.
        memory: bytes of one process, on each of its GPUs.
    """

    role: str
    processes: int
    gpus_each: float
    memory: Memory


@dataclass(frozen=True)
class Setting:
    """What a plan assumes beside the config.

    Attributes:
        on_gpu: False plans main memory of CPU processes.
        critic: shape of the critic's base, where it has one of its own; None: the policy's.
        separate_reward: reward models stand on bases of their own, of this shape, in scorer workers.
        runtime_bytes: what the driver and the communication library take on a GPU before the first tensor.
    """

    on_gpu: bool = True
    separate_reward: ModelShape | None = None
    critic: ModelShape | None = None
    runtime_bytes: float = 1.0 * GIB


def plan_roles(config: Section, shape: ModelShape, setting: Setting) -> list[RolePlan]:
    """Every kind of process of the stage with its bytes."""
    makers: dict[type, Callable[[Any, ModelShape, Setting], list[RolePlan]]] = {
        SftConfig: _sft,
        RewardConfig: _reward,
        DpoConfig: _dpo,
        PpoConfig: _ppo,
        SampleConfig: _sampling,
        EvaluateConfig: _sampling,
    }
    runtime = Memory(workspace=setting.runtime_bytes if setting.on_gpu else 0.0)
    found = makers[type(config)](config, shape, setting)
    return [replace(role, memory=role.memory + runtime) for role in found]


def _trainer(
    config: TrainerConfig | PpoConfig, base: list[Tensors], trained: list[Tensors], frozen: list[Tensors],
    width: int, copied: list[Tensors] | None = None, ranks: int | None = None,
) -> Memory:  # fmt: skip
    """Weights, adapters and training state of one rank; ``copied`` is a whole model trained beside the frozen base."""
    engine, ranks = config.engine, ranks or config.placement.num_ranks
    full = config.lora is None
    models = base + (copied or [])
    weights = resident(models, engine, ranks)
    learning = base if full else (copied or []) + trained
    state = training_state(learning, engine, ranks, width=width, eight_bit=config.optim.optimizer == "adamw_8bit")
    gathered = gathered_workspace(models, engine, ranks)
    host = weights if engine.offload_parameters else 0.0
    return state + Memory(
        weights=0.0 if engine.offload_parameters else weights,
        adapters=resident(frozen, engine, ranks) + (0.0 if full else resident(trained, engine, ranks)),
        workspace=gathered,
        host=host,
    )


def _gpus(wanted: float | None, setting: Setting, parts: int = 1) -> float:
    return (float(parts) if wanted is None else wanted) if setting.on_gpu else 0.0


def _sft(config: SftConfig, shape: ModelShape, setting: Setting) -> list[RolePlan]:
    width = dtype_bytes(config.model, on_gpu=setting.on_gpu)
    trained = adapter_tensors(shape, config.lora, width) if config.lora else []
    memory = _trainer(config, base_tensors(shape, config.model, width), trained, [], width)
    rows, tokens = config.batch.microbatch_sequences_per_gpu, config.data.max_sequence_tokens
    kept, recomputed = _passes(config.model, shape, config.lora, rows, tokens, width)
    chunk = LOSS_CHUNK_ROWS * shape.vocab * (width + 2 * 4)
    memory += Memory(activations=kept + max(recomputed, chunk))
    return [RolePlan("trainer", config.placement.num_ranks, _gpus(config.placement.gpus_per_rank, setting), memory)]


def _reward(config: RewardConfig, shape: ModelShape, setting: Setting) -> list[RolePlan]:
    width = dtype_bytes(config.model, on_gpu=setting.on_gpu)
    trained = adapter_tensors(shape, config.lora, width) if config.lora else []
    memory = _trainer(config, base_tensors(shape, config.model, width, head=1), trained, [], width)
    rows, tokens = 2 * config.batch.microbatch_pairs_per_gpu, config.data.max_sequence_tokens
    kept, recomputed = _passes(config.model, shape, config.lora, rows, tokens, width)
    memory += Memory(activations=kept + recomputed)
    return [RolePlan("trainer", config.placement.num_ranks, _gpus(config.placement.gpus_per_rank, setting), memory)]


def _dpo(config: DpoConfig, shape: ModelShape, setting: Setting) -> list[RolePlan]:
    """The reference is another adapter, frozen, or a second copy of a model that is trained whole."""
    width = dtype_bytes(config.model, on_gpu=setting.on_gpu)
    base = base_tensors(shape, config.model, width)
    trained = adapter_tensors(shape, config.lora, width) if config.lora else []
    memory = _trainer(config, base, trained, trained if config.lora else base, width)
    rows, tokens = 2 * config.batch.microbatch_pairs_per_gpu, config.data.max_sequence_tokens
    kept, recomputed = _passes(config.model, shape, config.lora, rows, tokens, width)
    chunk = LOSS_CHUNK_ROWS * shape.vocab * (width + 2 * 4)
    memory += Memory(activations=kept + max(recomputed, chunk))
    return [RolePlan("trainer", config.placement.num_ranks, _gpus(config.placement.gpus_per_rank, setting), memory)]


def _ppo(config: PpoConfig, shape: ModelShape, setting: Setting) -> list[RolePlan]:
    width = dtype_bytes(config.model, on_gpu=setting.on_gpu)
    base = base_tensors(shape, config.model, width)
    one = adapter_tensors(shape, config.lora, width)
    head = [Tensors(shape.hidden, width, 1)]
    shared, separate = reward_models(config, setting)
    critic = one + head + [Tensors(1, width, 1)] if config.critic_shares_base else []
    whole = config.policy_weights == "full"
    frozen = one + (one + head if shared else [])  # the reference, and the reward model on the same base
    memory = _trainer(config, base, critic if whole else one + critic, frozen, width, base if whole else None)
    halves = _in_halves(config, shape, setting, width)
    memory += _ppo_activations(config, shape, width, halves=halves, on_gpu=setting.on_gpu)
    trainer = RolePlan("trainer", config.placement.num_ranks, _gpus(config.placement.gpus_per_rank, setting), memory)
    roles = [trainer, _rollout(config, shape, setting, width)]
    if config.critic_is_apart:
        roles.append(_critic(config, setting.critic or shape, setting, width))
    if separate:
        roles.append(_scorer(config, setting.separate_reward or shape, separate, setting, width))
    return roles


def _critic(config: PpoConfig, shape: ModelShape, setting: Setting, width: int) -> RolePlan:
    """A rank of a critic with a base of its own: the whole base, an adapter and a value head; no logits."""
    placement, batch, rollout = config.placement, config.batch, config.rollout
    trained = [*adapter_tensors(shape, config.lora, width), Tensors(shape.hidden, width, 1), Tensors(1, width, 1)]
    base = base_tensors(shape, config.model, width)
    memory = _trainer(config, base, trained, [], width, ranks=placement.num_critic_ranks)
    tokens, budget = rollout.max_prompt_tokens + rollout.max_response_tokens, batch.microbatch_tokens_per_gpu
    kept, recomputed = pass_activations(
        shape,
        config.lora,
        rows=batch.microbatch_sequences_per_gpu if budget is None else -(-budget // tokens),
        tokens=tokens,
        width=width,
        checkpointing=config.model.gradient_checkpointing,
        packed=packs(config.lora),
        halves=_in_halves(config, shape, setting, width),
        keeps_gates=not config.roles.recompute_feed_forward,
        read=rollout.max_response_tokens,
    )
    gpus = _gpus(placement.gpus_per_critic_rank, setting)
    return RolePlan("critic", placement.num_critic_ranks, gpus, memory + Memory(activations=kept + recomputed))


def reward_models(config: PpoConfig, setting: Setting) -> tuple[int, int]:
    """(on the policy's base, in scorer workers): what the layout says where bases and formats agree as assumed.

    Raises:
        ConfigError: all are to share the base, and cannot.
    """
    count = sum(s.kind == "reward_model" for s in config.scores)
    none_fits = setting.separate_reward is not None or config.roles.layout == "separate"
    shared = 0 if none_fits else min(count, 1)
    if config.roles.layout == "shared" and count > shared:
        raise ConfigError("roles.layout=shared has room for one reward model, on the policy's base: leave out "
                          "--reward-shape and further reward models, or set roles.layout=auto")  # fmt: skip
    return shared, count - shared


def _scorer(config: PpoConfig, shape: ModelShape, count: int, setting: Setting, width: int) -> RolePlan:
    """A worker that holds ``count`` reward models, each a base with a head."""
    placement, tokens = config.placement, config.rollout.max_prompt_tokens + config.rollout.max_response_tokens
    rows = min(SCORER_ROWS, config.batch.sequences_per_step)
    memory = Memory(
        weights=count * sum(t.bytes for t in base_tensors(shape, config.model, width, head=1)),
        adapters=count * sum(t.bytes for t in adapter_tensors(shape, config.lora, width)),
        workspace=reading_workspace(shape, rows=rows, tokens=tokens, width=width),
    )
    gpus = _gpus(placement.gpus_per_scorer_worker, setting)
    return RolePlan("scorer", placement.num_scorer_workers, gpus, memory)


def _in_halves(config: PpoConfig, shape: ModelShape, setting: Setting, width: int) -> bool:
    """Whether layers run in two autograd steps: a frozen base, whole; bf16, and nf4 on GPUs, fp32 on CPUs."""
    frozen = config.policy_weights == "adapter" and packs(config.lora)
    kinds = ("none", "nf4") if setting.on_gpu else ("none",)
    computed = config.model.quantization in kinds and (width == 2 or not setting.on_gpu)
    return frozen and computed and config.engine.zero_stage < 3 and not shape.qk_norm


def borrows_base(config: PpoConfig, setting: Setting) -> bool:
    """Whether every rollout worker uses the base of the rank on its GPU."""
    placement = config.placement
    parts = _gpus(placement.gpus_per_rank, setting), _gpus(placement.gpus_per_rollout_worker, setting)
    side_by_side = placement.layout == "colocated" and placement.num_rollout_workers <= placement.num_ranks
    shared = side_by_side and all(0 < part < 1 for part in parts)
    frozen = config.policy_weights == "adapter" and config.engine.zero_stage < 3
    return shared and frozen and config.rollout.engine == "transformers"


def _ppo_activations(config: PpoConfig, shape: ModelShape, width: int, *, halves: bool, on_gpu: bool) -> Memory:
    """What the largest pass of learning holds; judging holds less. Demonstrations are read by the policy alone."""
    rows, budget, ptx = config.batch.microbatch_sequences_per_gpu, config.batch.microbatch_tokens_per_gpu, config.ptx
    kinds = [(rows, config.rollout.max_prompt_tokens, config.rollout.max_response_tokens, config.critic_shares_base)]
    if ptx is not None:
        of_rank = ptx.sequences_per_update // config.placement.num_ranks
        kinds.append((min(rows, of_rank), 1, ptx.max_sequence_tokens - 1, False))
    peaks = [
        ppo_peak(
            shape,
            config.lora,
            rows=count if budget is None else -(-budget // (prompt + response)),
            prompt=prompt,
            response=response,
            width=width,
            checkpointing=config.model.gradient_checkpointing,
            critic=critic,
            halves=halves,
            keeps_gates=not config.roles.recompute_feed_forward,
            on_gpu=on_gpu,
        )
        for count, prompt, response, critic in kinds
    ]
    return Memory(activations=max(peaks))


def _rollout(config: PpoConfig, shape: ModelShape, setting: Setting, width: int) -> RolePlan:
    placement, rollout = config.placement, config.rollout
    rows = min(rollout.microbatch_sequences, config.batch.sequences_per_step // placement.num_rollout_workers)
    lora = config.lora if config.policy_weights == "adapter" else None
    memory = _decoder(config.model, shape, lora, rows=max(1, rows), prompt=rollout.max_prompt_tokens,
                      response=rollout.max_response_tokens, width=width)  # fmt: skip
    if borrows_base(config, setting):
        memory = replace(memory, weights=0.0)
    parts = rollout.tensor_parallel
    memory = replace(memory, weights=memory.weights / parts, kv_cache=memory.kv_cache / parts)
    gpus = _gpus(placement.gpus_per_rollout_worker, setting, parts)
    return RolePlan("rollout", placement.num_rollout_workers, gpus, memory)


def _sampling(config: SampleConfig | EvaluateConfig, shape: ModelShape, setting: Setting) -> list[RolePlan]:
    width = dtype_bytes(config.model, on_gpu=setting.on_gpu)
    memory = _decoder(config.model, shape, LoraConfig(), rows=config.microbatch_sequences,
                      prompt=config.sampling.max_prompt_tokens, response=config.sampling.max_response_tokens,
                      width=width)  # fmt: skip
    gpus = _gpus(config.placement.gpus_per_rollout_worker, setting)
    return [RolePlan("rollout", config.placement.num_rollout_workers, gpus, memory)]


def _decoder(
    model: ModelConfig, shape: ModelShape, lora: LoraConfig | None, *, rows: int, prompt: int, response: int, width: int
) -> Memory:
    return Memory(
        weights=sum(t.bytes for t in base_tensors(shape, model, width)),
        adapters=sum(t.bytes for t in adapter_tensors(shape, lora, width)) if lora is not None else 0.0,
        kv_cache=kv_cache(shape, rows=rows, tokens=prompt + response, width=width),
        workspace=decoding_workspace(shape, rows=rows, prompt=prompt, width=width),
    )


def _passes(
    model: ModelConfig, shape: ModelShape, lora: LoraConfig | None, rows: int, tokens: int, width: int
) -> tuple[float, float]:
    return pass_activations(
        shape, lora, rows=rows, tokens=tokens, width=width, checkpointing=model.gradient_checkpointing
    )
