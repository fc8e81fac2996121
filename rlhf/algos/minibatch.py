"""Which rows form which minibatch, and which rank runs them in which micro-batch; integers only."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

Microbatch = tuple[int, ...]


@dataclass(frozen=True)
class MinibatchPlan:
    """One optimizer step.

    Attributes:
        ranks: for each rank its micro-batches, for each micro-batch its row indices. Every rank has the same
            number of micro-batches; every micro-batch has the same number of rows, unless a token budget made it.
    """

    ranks: tuple[tuple[Microbatch, ...], ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """All rows of this step over all ranks, ascending."""
        return tuple(sorted(row for microbatches in self.ranks for rows in microbatches for row in rows))

    def rows_of_rank(self, rank: int) -> tuple[int, ...]:
        """The rows of one rank, in the order it runs them."""
        return tuple(row for rows in self.ranks[rank] for row in rows)


def plan_minibatches(
    num_sequences: int,
    *,
    minibatch_sequences: int,
    num_ranks: int,
    microbatch_sequences: int,
    epochs: int,
    seed: int,
) -> list[list[MinibatchPlan]]:
    """Shuffle the rows of a step anew for every epoch and deal them out.

    Which rows form a minibatch depends on the seed, never on ``num_ranks`` or ``microbatch_sequences``: with
    losses divided by a global count, neither changes what is learned.

    Args:
        num_sequences: rows in the batch; each is used exactly once per epoch.
        minibatch_sequences: rows per optimizer step, over all ranks.
        num_ranks: data-parallel workers.
        microbatch_sequences: rows per forward pass on one rank.
        epochs: passes over the batch.
        seed: any integer; derive it from (run seed, step).

    Returns:
        ``[epoch][minibatch]``.

    Raises:
        ValueError: a number is below 1, or a division leaves a remainder.
    """
    counts = {
        "num_sequences": num_sequences,
        "minibatch_sequences": minibatch_sequences,
        "num_ranks": num_ranks,
        "microbatch_sequences": microbatch_sequences,
        "epochs": epochs,
    }
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if num_sequences % minibatch_sequences:
        raise ValueError(
            f"num_sequences={num_sequences} is not a multiple of minibatch_sequences={minibatch_sequences}"
        )
    if minibatch_sequences % (num_ranks * microbatch_sequences):
        raise ValueError(
            f"minibatch_sequences={minibatch_sequences} is not a multiple of num_ranks={num_ranks} x "
            f"microbatch_sequences={microbatch_sequences} = {num_ranks * microbatch_sequences}"
        )
    shuffler = random.Random(seed)
    plan = []
    for _ in range(epochs):
        order = list(range(num_sequences))
        shuffler.shuffle(order)
        plan.append([_deal(chunk, num_ranks, microbatch_sequences) for chunk in _chunks(order, minibatch_sequences)])
    return plan


def balance_rows_by_length(lengths: Sequence[int], plan: MinibatchPlan) -> MinibatchPlan:
    """Rearrange one minibatch so that little is padding and ranks have about equally much to do.

    Rows of similar length share a micro-batch: sorting gives the least possible padding for micro-batches of
    one size. The ranks' n-th micro-batches are neighbours in that order, so that in lockstep they wait
    little for each other; of those, the rank with the fewest tokens so far takes the longest. Longest first:
    what does not fit into memory fails at once. The rows of the minibatch, and hence the gradient, stay the
    same.

    Args:
        lengths: tokens of every row, indexed by the row indices of the plan.
        plan: from :func:`plan_minibatches`.
    """
    num_ranks, microbatch_sequences = len(plan.ranks), len(plan.ranks[0][0])
    longest_first = sorted(plan.rows, key=lambda row: (-lengths[row], row))
    microbatches = _chunks(longest_first, microbatch_sequences)
    dealt: list[list[Microbatch]] = [[] for _ in range(num_ranks)]
    load = [0] * num_ranks
    for step in _chunks(microbatches, num_ranks):
        least_loaded_first = sorted(range(num_ranks), key=lambda rank: (load[rank], rank))
        heaviest_first = sorted(step, key=lambda rows: -sum(lengths[row] for row in rows))
        for rank, rows in zip(least_loaded_first, heaviest_first, strict=True):
            dealt[rank].append(tuple(rows))
            load[rank] += sum(lengths[row] for row in rows)
    return MinibatchPlan(tuple(tuple(microbatches) for microbatches in dealt))


def balance_rows_by_tokens(lengths: Sequence[int], plan: MinibatchPlan) -> MinibatchPlan:
    """Rearrange one minibatch for passes without padding: every micro-batch gets about equally many tokens.

    Longest rows first, each to the micro-batch that has the fewest tokens and a free place; then rows are swapped as
    long as the heaviest and the lightest micro-batch come nearer. The heaviest run first, those of one weight side by
    side on the ranks.

    Args:
        lengths: tokens of every row, indexed by the row indices of the plan.
        plan: from :func:`plan_minibatches`.
    """
    num_micro = sum(len(microbatches) for microbatches in plan.ranks)
    return _spread(lengths, plan, num_micro, places=len(plan.ranks[0][0]))[0]


def fill_microbatches(lengths: Sequence[int], plan: MinibatchPlan, max_tokens: int) -> MinibatchPlan:
    """Rearrange one minibatch into as few passes without padding as a token budget allows, equally many per rank.

    Args:
        lengths: tokens of every row, indexed by the row indices of the plan.
        plan: from :func:`plan_minibatches`; its micro-batches are given up.
        max_tokens: of a micro-batch.

    Raises:
        ValueError: a row is longer than the budget, or the ranks cannot have equally many rows.
    """
    num_ranks, rows = len(plan.ranks), plan.rows
    longest = max(lengths[row] for row in rows)
    if longest > max_tokens:
        raise ValueError(f"a sequence has {longest} tokens, a micro-batch may have max_tokens={max_tokens}")
    if len(rows) % num_ranks:
        raise ValueError(f"{len(rows)} rows are not a multiple of num_ranks={num_ranks}")
    passes = max(1, sum(lengths[row] for row in rows) // (num_ranks * max_tokens))
    while True:
        filled, heaviest = _spread(lengths, plan, num_ranks * passes, places=len(rows))
        if heaviest <= max_tokens:
            return filled
        passes += 1


def _spread(lengths: Sequence[int], plan: MinibatchPlan, num_micro: int, *, places: int) -> tuple[MinibatchPlan, int]:
    """(``num_micro`` micro-batches of at most ``places`` rows dealt to the ranks, tokens of the heaviest one)."""
    num_ranks = len(plan.ranks)
    groups: list[list[int]] = [[] for _ in range(num_micro)]
    load = [0] * num_micro
    for row in sorted(plan.rows, key=lambda row: (-lengths[row], row)):
        index = min((i for i in range(num_micro) if len(groups[i]) < places), key=lambda i: (load[i], i))
        groups[index].append(row)
        load[index] += lengths[row]
    while _swap(lengths, groups, load):
        pass
    heaviest_first = sorted(range(num_micro), key=lambda i: (-load[i], i))
    dealt = tuple(tuple(tuple(groups[i]) for i in heaviest_first[rank::num_ranks]) for rank in range(num_ranks))
    return MinibatchPlan(dealt), max(load)


def _swap(lengths: Sequence[int], groups: list[list[int]], load: list[int]) -> bool:
    """Swaps a row of the heaviest micro-batch with one of the lightest, so that both are nearest; False: none helps."""
    heavy = max(range(len(groups)), key=lambda i: (load[i], -i))
    light = min(range(len(groups)), key=lambda i: (load[i], i))
    apart = load[heavy] - load[light]
    pairs = [(abs(apart - 2 * (lengths[a] - lengths[b])), a, b) for a in groups[heavy] for b in groups[light]]
    left, a, b = min(pairs, default=(apart, -1, -1))
    if left >= apart:
        return False
    groups[heavy][groups[heavy].index(a)], groups[light][groups[light].index(b)] = b, a
    load[heavy] -= lengths[a] - lengths[b]
    load[light] += lengths[a] - lengths[b]
    return True


def _deal(rows: Sequence[int], num_ranks: int, microbatch_sequences: int) -> MinibatchPlan:
    per_rank = _chunks(rows, len(rows) // num_ranks)
    return MinibatchPlan(tuple(tuple(map(tuple, _chunks(part, microbatch_sequences))) for part in per_rank))


def _chunks(items: Sequence, size: int) -> list:
    return [items[start : start + size] for start in range(0, len(items), size)]
