"""Numbers that are none are refused where they first appear, and only in kept slots."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf.algos.finite import require_finite
from rlhf.errors import NumericsError


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_are_named(bad: float) -> None:
    scores = torch.zeros(20)
    scores[3] = scores[17] = bad
    with pytest.raises(NumericsError, match=r"the score is not finite in 2 of 20 rows \(3, 17\)"):
        require_finite("the score", scores)
    values = torch.zeros(20, 4)
    values[:, 2] = bad
    with pytest.raises(NumericsError, match=r"in 20 of 20 rows .* and 12 more"):
        require_finite("the value", values)


def test_padding_may_hold_anything() -> None:
    values = torch.tensor([[1.0, math.nan], [2.0, 3.0]])
    mask = torch.tensor([[True, False], [True, True]])
    require_finite("the value", values, mask)
    with pytest.raises(NumericsError, match=r"1 of 2 rows \(0\)"):
        require_finite("the value", values, ~mask | mask)
