"""Which sequences share a pass on which rank, for judging and for learning."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf.algos.minibatch import (
    MinibatchPlan,
    balance_rows_by_length,
    balance_rows_by_tokens,
    fill_microbatches,
    plan_minibatches,
)
from rlhf.config import PpoConfig, derive_seed
from rlhf.errors import ConfigError


def require_packing(config: PpoConfig, packs: bool) -> None:
    """A budget of tokens counts no padding.

    Raises:
        ConfigError: this model or adapter method takes padded passes.
    """
    if config.batch.microbatch_tokens_per_gpu is not None and not packs:
        raise ConfigError(
            "batch.microbatch_tokens_per_gpu needs passes without padding, which this model or adapter method cannot "
            "take (plain LoRA on a model with full SDPA attention can): set batch.microbatch_sequences_per_gpu instead"
        )


def judging_passes(config: PpoConfig, lengths: Sequence[int], num_ranks: int | None = None) -> MinibatchPlan:
    """All sequences of a step, each once, dealt to the ranks by length.

    Args:
        lengths: tokens of every sequence.
        num_ranks: None: the policy's.
    """
    return _dealt(config, lengths, range(len(lengths)), num_ranks)


def in_step_order(plan: MinibatchPlan, parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What all ranks have told about their rows of a plan that holds every row once, in the order of the step."""
    rows = torch.tensor([row for rank in range(len(plan.ranks)) for row in plan.rows_of_rank(rank)])
    back = torch.empty_like(rows)
    back[rows] = torch.arange(len(rows))
    return {key: torch.cat([part[key] for part in parts])[back] for key in parts[0]}


def anchoring_passes(config: PpoConfig, lengths: Sequence[int], per_update: int) -> list[MinibatchPlan]:
    """The demonstrations of each update, which stand back to back."""
    return [_dealt(config, lengths, range(first, first + per_update)) for first in range(0, len(lengths), per_update)]


def _dealt(
    config: PpoConfig, lengths: Sequence[int], rows: Sequence[int], num_ranks: int | None = None
) -> MinibatchPlan:
    num_ranks = num_ranks or config.placement.num_ranks
    budget = config.batch.microbatch_tokens_per_gpu
    size = config.batch.microbatch_sequences_per_gpu
    by_length = sorted(rows, key=lambda row: lengths[row])
    rows_of = [by_length[rank::num_ranks] for rank in range(num_ranks)]
    plan = MinibatchPlan(tuple(tuple(tuple(own[i : i + size]) for i in range(0, len(own), size)) for own in rows_of))
    return plan if budget is None else fill_microbatches(lengths, plan, budget)


def learning_passes(
    config: PpoConfig, lengths: Sequence[int], step: int, packs: bool, num_ranks: int | None = None
) -> list[list[MinibatchPlan]]:
    """``[epoch][minibatch]`` of a step: the same rows in a minibatch whatever the ranks, passes and budget.

    Args:
        lengths: tokens of every sequence.
        packs: passes hold no padding.
        num_ranks: None: the policy's.
    """
    batch, num_ranks = config.batch, num_ranks or config.placement.num_ranks
    budget = batch.microbatch_tokens_per_gpu
    plans = plan_minibatches(
        len(lengths),
        minibatch_sequences=batch.minibatch_sequences,
        num_ranks=num_ranks,
        microbatch_sequences=batch.microbatch_sequences_per_gpu if budget is None else 1,
        epochs=batch.epochs,
        seed=derive_seed(config.seed, "minibatches", step),
    )

    def arrange(plan: MinibatchPlan) -> MinibatchPlan:
        if budget is not None:
            return fill_microbatches(lengths, plan, budget)
        return (balance_rows_by_tokens if packs else balance_rows_by_length)(lengths, plan)

    return [[arrange(plan) for plan in epoch] for epoch in plans]
