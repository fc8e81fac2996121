"""Which sequences share a pass on which rank, for judging and for learning; integers only."""

from __future__ import annotations

from collections.abc import Sequence

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


def judging_passes(config: PpoConfig, lengths: Sequence[int]) -> MinibatchPlan:
    """All sequences of a step, each once, dealt to the ranks by length.

    Args:
        lengths: tokens of every sequence.
    """
    return _dealt(config, lengths, range(len(lengths)))


def anchoring_passes(config: PpoConfig, lengths: Sequence[int], per_update: int) -> list[MinibatchPlan]:
    """The demonstrations of each update, which stand back to back."""
    return [_dealt(config, lengths, range(first, first + per_update)) for first in range(0, len(lengths), per_update)]


def _dealt(config: PpoConfig, lengths: Sequence[int], rows: Sequence[int]) -> MinibatchPlan:
    num_ranks, budget = config.placement.num_ranks, config.batch.microbatch_tokens_per_gpu
    size = config.batch.microbatch_sequences_per_gpu
    by_length = sorted(rows, key=lambda row: lengths[row])
    rows_of = [by_length[rank::num_ranks] for rank in range(num_ranks)]
    plan = MinibatchPlan(tuple(tuple(tuple(own[i : i + size]) for i in range(0, len(own), size)) for own in rows_of))
    return plan if budget is None else fill_microbatches(lengths, plan, budget)


def learning_passes(config: PpoConfig, lengths: Sequence[int], step: int, packs: bool) -> list[list[MinibatchPlan]]:
    """``[epoch][minibatch]`` of a step: the same rows in a minibatch whatever the ranks, passes and budget.

    Args:
        lengths: tokens of every sequence.
        packs: passes hold no padding.
    """
    batch, num_ranks = config.batch, config.placement.num_ranks
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
