"""Padding is where the masks say it is, and nothing is lost between ragged and rectangular."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.data.collate import assemble_sequences, bucket_by_tokens, pad_left, pad_right
from rlhf.errors import ConfigError, DataError

PAD = 9
ROWS = st.lists(st.tuples(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.lists(st.integers(0, 9), max_size=6)))


def test_padding_goes_to_its_side() -> None:
    ids, mask = pad_left([[1, 2, 3], [4]], PAD)
    assert ids.tolist() == [[1, 2, 3], [PAD, PAD, 4]]
    assert mask.tolist() == [[True, True, True], [False, False, True]]
    ids, mask = pad_right([[1, 2, 3], [4], []], PAD)
    assert ids.tolist() == [[1, 2, 3], [4, PAD, PAD], [PAD, PAD, PAD]]
    assert mask.tolist() == [[True, True, True], [True, False, False], [False, False, False]]
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)


def test_prompts_end_and_responses_begin_at_one_column() -> None:
    batch = assemble_sequences([[1, 2], [3]], [[4], [5, 6, 7]], PAD)
    assert batch.prompt_length == 2
    assert batch.input_ids.tolist() == [[1, 2, 4, PAD, PAD], [PAD, 3, 5, 6, 7]]
    assert batch.attention_mask.int().tolist() == [[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]]
    assert batch.response_mask.int().tolist() == [[0, 0, 1, 0, 0], [0, 0, 1, 1, 1]]


@settings(max_examples=50, deadline=None)
@given(rows=ROWS.filter(bool))
def test_masks_give_the_ragged_rows_back_even_when_the_pad_id_is_a_word(
    rows: list[tuple[list[int], list[int]]],
) -> None:
    batch = assemble_sequences([prompt for prompt, _ in rows], [response for _, response in rows], PAD)
    for index, (prompt, response) in enumerate(rows):
        ids, mask = batch.input_ids[index], batch.attention_mask[index]
        assert ids[mask].tolist() == prompt + response
        assert ids[batch.response_mask[index]].tolist() == response
        assert torch.all(ids[~mask] == PAD)


def test_rows_that_cannot_be_joined_are_refused() -> None:
    with pytest.raises(DataError, match="no row"):
        assemble_sequences([], [], PAD)
    with pytest.raises(DataError, match="do not pair up"):
        assemble_sequences([[1]], [[1], [2]], PAD)
    with pytest.raises(DataError, match=r"prompts \[1\]"):
        assemble_sequences([[1], []], [[1], [2]], PAD)


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(0, 50), max_size=60), max_tokens=st.integers(50, 200))
def test_buckets_hold_every_row_once_within_the_budget(lengths: list[int], max_tokens: int) -> None:
    groups = bucket_by_tokens(lengths, max_tokens)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert group
        assert len(group) * max(lengths[index] for index in group) <= max_tokens
    for left, right in pairwise(groups):
        assert max(lengths[i] for i in left) <= min(lengths[i] for i in right)
        # A group is closed only when the next row would not fit.
        assert (len(left) + 1) * lengths[right[0]] > max_tokens
    assert groups == bucket_by_tokens(list(lengths), max_tokens)


def test_a_row_beyond_the_budget_is_refused() -> None:
    with pytest.raises(DataError, match="row 1 has 6 tokens"):
        bucket_by_tokens([3, 6], 5)
    with pytest.raises(ConfigError, match="max_tokens=0"):
        bucket_by_tokens([1], 0)
