import itertools
import random

import pytest
import torch
from hypothesis import strategies as st

from rlhf.algos.losses import ppo_policy_loss
from rlhf.algos.minibatch import (
    MinibatchPlan,
    balance_rows_by_length,
    balance_rows_by_tokens,
    fill_microbatches,
    plan_minibatches,
)

from .support import given, normal, right_padded, seeds


def plan(num_sequences=24, minibatch=12, ranks=2, microbatch=3, epochs=2, seed=0):
    return plan_minibatches(
        num_sequences,
        minibatch_sequences=minibatch,
        num_ranks=ranks,
        microbatch_sequences=microbatch,
        epochs=epochs,
        seed=seed,
    )


def test_every_epoch_uses_every_row_once_in_equal_parts():
    epochs = plan()
    assert len(epochs) == 2
    for epoch in epochs:
        assert len(epoch) == 2
        assert sorted(row for step in epoch for row in step.rows) == list(range(24))
        for step in epoch:
            assert [[len(rows) for rows in microbatches] for microbatches in step.ranks] == [[3, 3], [3, 3]]
            assert step.rows == tuple(sorted(step.rows_of_rank(0) + step.rows_of_rank(1)))
            assert step.rows_of_rank(1) == step.ranks[1][0] + step.ranks[1][1]


def test_epochs_and_seeds_shuffle_differently_and_repeatably():
    assert plan() == plan()
    first, second = plan()
    assert [s.rows for s in first] != [s.rows for s in second]
    assert plan(seed=1) != plan(seed=0)
    assert plan(epochs=1)[0] == plan(epochs=3)[0]
    assert [s.rows for s in first] != [tuple(range(12)), tuple(range(12, 24))]


@given(seeds, st.sampled_from([(1, 1), (1, 12), (2, 3), (3, 2), (4, 1), (6, 2), (12, 1)]))
def test_what_is_in_a_minibatch_does_not_depend_on_ranks_or_microbatches(seed, layout):
    ranks, microbatch = layout
    expected = plan(ranks=1, microbatch=12, seed=seed)
    other = plan(ranks=ranks, microbatch=microbatch, seed=seed)
    assert [[s.rows for s in epoch] for epoch in other] == [[s.rows for s in epoch] for epoch in expected]


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        ({"num_sequences": 25}, ["25", "12"]),
        ({"ranks": 5}, ["12", "num_ranks=5", "3", "15"]),
        ({"microbatch": 4}, ["12", "microbatch_sequences=4", "8"]),
        ({"minibatch": 48}, ["24", "48"]),
        ({"epochs": 0}, ["epochs", "0"]),
        ({"minibatch": 0}, ["minibatch_sequences", "0"]),
        ({"num_sequences": 0}, ["num_sequences", "0"]),
        ({"ranks": -1}, ["num_ranks", "-1"]),
        ({"microbatch": 0}, ["microbatch_sequences", "0"]),
    ],
)
def test_a_remainder_is_refused_with_its_numbers(arguments, numbers):
    with pytest.raises(ValueError) as error:
        plan(**arguments)
    for number in numbers:
        assert number in str(error.value)


def padding(step, lengths):
    return sum(
        max(lengths[row] for row in rows) * len(rows) - sum(lengths[row] for row in rows)
        for microbatches in step.ranks
        for rows in microbatches
    )


def tokens_of_ranks(step, lengths):
    return [sum(lengths[row] for row in step.rows_of_rank(rank)) for rank in range(len(step.ranks))]


@given(seeds, st.sampled_from([(1, 2), (2, 1), (2, 3), (3, 2), (4, 3)]))
def test_balancing_keeps_rows_and_shape_and_never_adds_padding(seed, layout):
    ranks, microbatch = layout
    lengths = [random.Random(seed + i).randint(1, 100) for i in range(24)]
    for step in plan(ranks=ranks, microbatch=microbatch, seed=seed)[0]:
        balanced = balance_rows_by_length(lengths, step)
        assert balanced.rows == step.rows
        assert [[len(r) for r in m] for m in balanced.ranks] == [[len(r) for r in m] for m in step.ranks]
        assert padding(balanced, lengths) <= padding(step, lengths)
        assert balance_rows_by_length(lengths, step) == balanced
        tokens = tokens_of_ranks(balanced, lengths)
        assert max(tokens) - min(tokens) <= microbatch * max(lengths)
        for microbatches in balanced.ranks:
            longest = [max(lengths[row] for row in rows) for rows in microbatches]
            assert longest == sorted(longest, reverse=True)


@given(seeds)
def test_padding_is_the_least_possible(seed):
    lengths = [random.Random(seed + i).randint(1, 9) for i in range(6)]
    step = MinibatchPlan((((0, 1), (2, 3), (4, 5)),))
    least = min(
        padding(MinibatchPlan(((order[:2], order[2:4], order[4:]),)), lengths)
        for order in itertools.permutations(range(6))
    )
    assert padding(balance_rows_by_length(lengths, step), lengths) == least


def test_balancing_by_hand():
    """Sorted: rows 3 (9), 1 (8), 0 (4), 2 (1). Rank 0 takes the 9, so rank 1 the larger of the rest."""
    step = MinibatchPlan((((0,), (1,)), ((2,), (3,))))
    balanced = balance_rows_by_length([4, 8, 1, 9], step)
    assert balanced.ranks == (((3,), (2,)), ((1,), (0,)))
    assert tokens_of_ranks(balanced, [4, 8, 1, 9]) == [10, 12]


def test_balancing_does_not_depend_on_how_rows_were_dealt():
    lengths = [5] * 24
    step = plan()[0][0]
    shuffled = MinibatchPlan(tuple(tuple(rows[::-1] for rows in m[::-1]) for m in step.ranks[::-1]))
    assert balance_rows_by_length(lengths, shuffled) == balance_rows_by_length(lengths, step)


@given(seeds, st.sampled_from([(1, 1), (1, 4), (2, 1), (2, 2), (4, 1)]), st.booleans())
def test_the_gradient_does_not_depend_on_ranks_microbatches_or_balancing(seed, layout, balanced):
    """Ragged rows, micro-batches cut to their longest row: gradients add to that of the whole."""
    ranks, microbatch = layout
    lengths = [3, 1, 7, 2, 5, 5, 1, 4]
    mask = right_padded(lengths, 7)
    features, old, advantages = (
        normal(seed, 8, 7, 3),
        normal(seed + 1, 8, 7, scale=0.3),
        normal(seed + 2, 8, 7),
    )

    def gradient(step):
        weights = torch.full((3,), 0.1, dtype=torch.float64, requires_grad=True)
        denominator = sum(lengths[row] for row in step.rows)
        for microbatches in step.ranks:
            for rows in microbatches:
                index = torch.tensor(rows)
                width = max(lengths[row] for row in rows)
                inputs = [x[index, :width] for x in (features @ weights, old, advantages, mask)]
                ppo_policy_loss(*inputs, clip_low=0.2, clip_high=0.2, denominator=denominator).loss.backward()
        return weights.grad

    whole = plan(8, 4, 1, 4, epochs=1, seed=seed)[0][0]
    parts = plan(8, 4, ranks, microbatch, epochs=1, seed=seed)[0][0]
    if balanced:
        parts = balance_rows_by_length(lengths, parts)
    torch.testing.assert_close(gradient(parts), gradient(whole), atol=1e-13, rtol=0)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.data())
def test_balancing_by_tokens_keeps_the_rows_and_the_shape(
    num_ranks: int, num_microbatches: int, microbatch_sequences: int, data: st.DataObject
) -> None:
    rows = num_ranks * num_microbatches * microbatch_sequences
    lengths = data.draw(st.lists(st.integers(1, 100), min_size=rows, max_size=rows))
    plan = plan_minibatches(rows, minibatch_sequences=rows, num_ranks=num_ranks,
                            microbatch_sequences=microbatch_sequences, epochs=1, seed=0)[0][0]  # fmt: skip
    balanced = balance_rows_by_tokens(lengths, plan)
    assert balanced.rows == plan.rows
    assert [[len(m) for m in rank] for rank in balanced.ranks] == [[len(m) for m in rank] for rank in plan.ranks]


def test_balancing_by_tokens_makes_ranks_wait_little() -> None:
    lengths = [90, 80, 20, 10, 50, 50, 60, 40]
    plan = plan_minibatches(8, minibatch_sequences=8, num_ranks=2, microbatch_sequences=4, epochs=1, seed=0)[0][0]
    tokens = [sum(lengths[row] for row in balance_rows_by_tokens(lengths, plan).rows_of_rank(r)) for r in range(2)]
    assert tokens == [200, 200]


@pytest.mark.parametrize(
    ("lengths", "tokens"),
    [
        ([9, 9, 7, 7, 7, 3], [21, 21]),
        ([60, 9, 9, 8, 8, 8, 8, 8], [84, 34]),
        ([39, 38, 38, 18, 14, 20, 2, 18], [94, 93]),
    ],
)
def test_rows_are_swapped_where_dealing_leaves_ranks_apart(lengths: list[int], tokens: list[int]) -> None:
    rows = len(lengths)
    plan = plan_minibatches(rows, minibatch_sequences=rows, num_ranks=2, microbatch_sequences=rows // 2, epochs=1,
                            seed=0)[0][0]  # fmt: skip
    ranks = balance_rows_by_tokens(lengths, plan)
    assert [sum(lengths[row] for row in ranks.rows_of_rank(rank)) for rank in range(2)] == tokens


def test_balancing_by_tokens_runs_the_heaviest_first() -> None:
    plan = plan_minibatches(3, minibatch_sequences=3, num_ranks=1, microbatch_sequences=1, epochs=1, seed=0)[0][0]
    assert balance_rows_by_tokens([5, 1, 9], plan).ranks == (((2,), (0,), (1,)),)


@given(st.integers(1, 3), st.integers(1, 8), st.integers(100, 300), st.data())
def test_a_token_budget_holds_on_every_rank_in_equally_many_passes(
    num_ranks: int, rows_per_rank: int, budget: int, data: st.DataObject
) -> None:
    rows = num_ranks * rows_per_rank
    lengths = data.draw(st.lists(st.integers(1, 100), min_size=rows, max_size=rows))
    plan = plan_minibatches(rows, minibatch_sequences=rows, num_ranks=num_ranks, microbatch_sequences=1,
                            epochs=1, seed=0)[0][0]  # fmt: skip
    filled = fill_microbatches(lengths, plan, budget)
    assert filled.rows == plan.rows
    assert len({len(microbatches) for microbatches in filled.ranks}) == 1
    loads = [sum(lengths[row] for row in rows) for rank in filled.ranks for rows in rank]
    assert max(loads) <= budget and min(loads) >= 1
    assert loads[0] == max(loads)


def test_a_token_budget_is_used_up() -> None:
    plan = MinibatchPlan((((0, 1), (2, 3)), ((4, 5), (6, 7))))
    lengths = [60, 40, 30, 70, 50, 50, 10, 90]
    assert [len(rank) for rank in fill_microbatches(lengths, plan, 210).ranks] == [1, 1]
    assert [len(rank) for rank in fill_microbatches(lengths, plan, 209).ranks] == [2, 2]
    assert [len(rank) for rank in fill_microbatches(lengths, plan, 100).ranks] == [2, 2]
    assert [len(rank) for rank in fill_microbatches(lengths, plan, 90).ranks] == [3, 3]


@pytest.mark.parametrize(
    ("lengths", "message"), [([5, 101, 3], "101 tokens.*max_tokens=100"), ([5, 6, 7], "3 rows.*num_ranks=2")]
)
def test_a_token_budget_that_cannot_hold_is_refused(lengths: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fill_microbatches(lengths, MinibatchPlan((((0,),), ((1, 2),))), 100)
