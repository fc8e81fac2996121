"""Parts of one row: which tokens each has, and which of them are read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlhf.models.packing import TILE_MULTIPLE, Kept, pack, without_last

MASK = torch.tensor([[False, True, True, True], [True, True, False, False], [False, False, True, False]])
IDS = torch.arange(10, 22).view(3, 4)


def test_the_last_token_of_a_sequence_is_left_out_wherever_padding_is() -> None:
    wanted = [[False, True, True, False], [True, False, False, False], [False, False, True, False]]
    assert without_last(MASK).tolist() == wanted, "a single token stays"


@pytest.mark.parametrize(("multiple", "counts"), [(1, (6, 4)), (TILE_MULTIPLE, (8, 4)), (16, (16, 16))])
def test_parts_have_their_own_tokens(multiple: int, counts: tuple[int, int]) -> None:
    words, found = pack(IDS, [MASK, without_last(MASK)], multiple)
    assert found == counts
    first, second = words["input_ids"][0].split(found)
    assert first[:6].tolist() == [11, 12, 13, 14, 15, 20] and second[:4].tolist() == [11, 12, 14, 20]
    assert not first[6:].any() and not second[4:].any()
    first, second = words["position_ids"][0].split(found)
    assert first[:6].tolist() == [0, 1, 2, 0, 1, 0] and second[:4].tolist() == [0, 1, 0, 0]
    packing = words["packing"]
    assert packing.lengths == (3, 2, 1 + counts[0] - 6, 2, 1, 1 + counts[1] - 4)
    assert packing.starts.diff().tolist() == list(packing.lengths) and packing.num_sequences == 6


def test_tokens_come_apart_and_together_again() -> None:
    words, counts = pack(IDS, [MASK, without_last(MASK)], 1)
    packing = words["packing"]
    states: Tensor = torch.arange(1.0, 1 + 2 * sum(counts)).view(1, 1, sum(counts), 2)  # (1, heads, tokens, size)
    apart = packing.apart(states)
    assert apart.shape == (6, 1, 3, 2)
    for one, other, length in zip(apart, packing.split(states), packing.lengths, strict=True):
        assert torch.equal(one[:, :length], other[0]) and not one[:, length:].any()
    assert torch.equal(packing.together(apart.transpose(1, 2)), states.transpose(1, 2))


def test_what_is_read_of_each_part_is_filled_up_with_its_last_token() -> None:
    kept = Kept.of([torch.tensor([0, 2, 5]), torch.tensor([1])], (8, 4), TILE_MULTIPLE)
    assert kept.rows.tolist() == [0, 2, 5, 7, 8 + 1, 11, 11, 11] and kept.counts == (4, 4)
