"""A prompt never sits on both sides, and growing the data moves nothing."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.data.schema import Message, PreferenceRow, PromptRow
from rlhf.data.splits import split_by_prompt
from rlhf.errors import ConfigError, DataError


def prompts(numbers: range) -> list[PromptRow]:
    return [PromptRow(str(n), (Message("user", f"Question {n}"),)) for n in numbers]


def ids(rows: list[PromptRow]) -> list[str]:
    return [row.id for row in rows]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), fraction=st.sampled_from([0.1, 0.3, 0.5]))
def test_appending_and_shuffling_rows_moves_none(seed: int, fraction: float) -> None:
    before = split_by_prompt(prompts(range(300)), eval_fraction=fraction, seed=seed)  # of 100, seed 15 evaluates none
    grown = prompts(range(350))
    random.Random(seed).shuffle(grown)
    after = split_by_prompt(grown, eval_fraction=fraction, seed=seed)
    for old, new in zip(before, after, strict=True):
        assert set(ids(old)) <= set(ids(new))


def test_sides_are_disjoint_complete_ordered_and_near_the_fraction() -> None:
    rows = prompts(range(2000))
    train, evaluation = split_by_prompt(rows, eval_fraction=0.2, seed=0)
    assert sorted(ids(train + evaluation), key=int) == ids(rows)
    assert ids(train) == sorted(ids(train), key=int)
    # Binomial(2000, 0.2) has deviation 17.9; five of them leave one chance in a million.
    assert abs(len(evaluation) - 400) < 90


def test_another_seed_is_another_split() -> None:
    rows = prompts(range(200))
    first, second = (split_by_prompt(rows, eval_fraction=0.5, seed=seed)[1] for seed in (0, 1))
    assert ids(first) != ids(second)


def test_all_rows_of_one_prompt_stay_together() -> None:
    rows = [
        PreferenceRow(f"{n}-{k}", (Message(("user", "text")[k % 2], f"Question {n}"),), f"a{k}", "b", group=str(k))
        for n in range(50)
        for k in range(4)
    ]
    train, evaluation = split_by_prompt(rows, eval_fraction=0.3, seed=3)
    assert not {row.id.split("-")[0] for row in train} & {row.id.split("-")[0] for row in evaluation}


def test_an_empty_side_is_refused_only_when_wanted() -> None:
    one = prompts(range(1))
    with pytest.raises(DataError, match="side is empty"):
        split_by_prompt(one, eval_fraction=0.5, seed=0)
    assert split_by_prompt(one, eval_fraction=0.0, seed=0) == (one, [])
    assert split_by_prompt(one, eval_fraction=1.0, seed=0) == ([], one)
    for empty_side in (0.0, 0.5, 1.0):
        with pytest.raises(DataError, match="side is empty"):
            split_by_prompt([], eval_fraction=empty_side, seed=0)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(ConfigError):
        split_by_prompt(prompts(range(3)), eval_fraction=fraction, seed=0)


def test_the_side_depends_on_the_prompt_and_not_on_the_name_of_the_row() -> None:
    rows = prompts(range(100))
    renamed = [PromptRow(f"other {row.id}", row.messages) for row in rows]
    first, second = (split_by_prompt(given, eval_fraction=0.5, seed=0)[1] for given in (rows, renamed))
    assert [row.messages for row in first] == [row.messages for row in second]
