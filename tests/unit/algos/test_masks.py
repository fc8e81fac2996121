import math

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from rlhf.algos.masks import (
    at_least_float32,
    ends_with_eos,
    fill_masked,
    last_token_mask,
    masked_mean,
    masked_sum,
    masked_var,
    position_ids,
    require_mask,
    response_mask_from_tokens,
)

from .support import assert_junk_proof, given, masks, normal, seeds

EOS, PAD = 9, 0


def test_response_mask_includes_the_first_eos_and_nothing_after():
    ids = torch.tensor(
        [[1, 2, EOS, PAD, PAD], [1, 2, 3, 4, 5], [EOS, EOS, 1, 2, EOS], [1, 8, 2, EOS, 3], [1, 2, 3, 4, EOS]]
    )
    mask = response_mask_from_tokens(ids, [EOS, 8])
    assert mask.dtype == torch.bool
    assert mask.long().tolist() == [
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1],
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1],
    ]


def test_without_eos_ids_everything_is_response():
    assert response_mask_from_tokens(torch.tensor([[1, EOS, 2]]), []).all()


@given(st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=1, max_size=5))
def test_response_mask_agrees_with_reading_token_by_token(rows):
    expected = []
    for row in rows:
        kept, open_ = [], True
        for token in row:
            kept.append(open_)
            open_ = open_ and token not in (1, 3)
        expected.append(kept)
    assert response_mask_from_tokens(torch.tensor(rows), (3, 1)).tolist() == expected


def test_ends_with_eos_looks_at_the_last_kept_token_only():
    ids = torch.tensor([[1, EOS, PAD], [EOS, 1, 2], [1, 2, EOS], [1, 2, 8], [EOS, EOS, EOS]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 1, 1], [0, 0, 0]], dtype=torch.bool)
    assert ends_with_eos(ids, mask, [EOS, 8]).tolist() == [True, False, False, True, False]


@given(masks())
def test_last_token_mask_is_the_last_true_of_each_row(mask):
    for row, last in zip(mask.tolist(), last_token_mask(mask).tolist(), strict=True):
        kept = [i for i, keep in enumerate(row) if keep]
        assert [i for i, keep in enumerate(last) if keep] == kept[-1:]


def test_position_ids_count_real_tokens_and_are_one_in_padding():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    ids = position_ids(mask)
    assert ids.dtype == torch.long
    assert ids.tolist() == [[1, 1, 0, 1, 2], [0, 1, 2, 1, 1], [0, 1, 2, 3, 4]]


@given(masks(), seeds)
def test_reductions_agree_with_numpy_on_the_kept_numbers(mask, seed):
    x = normal(seed, *mask.shape, scale=3.0) + 5
    kept = x.numpy()[mask.numpy()]
    assert masked_sum(x, mask).item() == pytest.approx(math.fsum(kept), abs=1e-12)
    assert masked_mean(x, mask).item() == pytest.approx(np.mean(kept) if kept.size else 0.0, abs=1e-12)
    assert masked_mean(x, mask, denominator=7).item() == pytest.approx(math.fsum(kept) / 7, abs=1e-12)
    assert masked_var(x, mask).item() == pytest.approx(np.var(kept) if kept.size else 0.0, abs=1e-11)
    by_row = [math.fsum(row[keep]) for row, keep in zip(x.numpy(), mask.numpy(), strict=True)]
    assert masked_sum(x, mask, dim=1).tolist() == pytest.approx(by_row, abs=1e-12)


@given(masks(), seeds)
@pytest.mark.parametrize(
    "function",
    [
        masked_sum,
        masked_mean,
        masked_var,
        fill_masked,
        lambda x, mask: masked_mean(x, mask, denominator=3),
        lambda x, mask: masked_sum(x, mask, dim=1),
    ],
)
def test_padding_cannot_matter(function, mask, seed):
    assert_junk_proof(function, [normal(seed, *mask.shape)], mask, differentiable=True)


def test_half_precision_is_summed_in_float32():
    x = torch.ones(1, 5000, dtype=torch.bfloat16)
    total = masked_sum(x, torch.ones_like(x, dtype=torch.bool))
    assert total.dtype == torch.float32
    assert total.item() == 5000.0  # bfloat16 has no such number
    assert at_least_float32(x.double()).dtype == torch.float64


def test_fill_masked_fills_with_the_value_asked_for():
    filled = fill_masked(torch.tensor([1.0, 2.0]), torch.tensor([True, False]), -7.0)
    assert filled.tolist() == [1.0, -7.0]


def test_masks_that_are_not_bool_or_of_another_shape_are_refused():
    x = torch.ones(2, 3)
    with pytest.raises(TypeError, match="must be bool"):
        masked_sum(x, torch.ones(2, 3))
    with pytest.raises(TypeError, match="must be bool"):
        position_ids(torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(3,\).*\(2, 3\)"):
        masked_sum(x, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="shape"):
        require_mask(torch.ones(2, 3, dtype=torch.bool), x, torch.ones(2, 1))
