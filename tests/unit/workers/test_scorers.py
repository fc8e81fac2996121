"""How a step's responses are dealt to scorer workers."""

from __future__ import annotations

import random

import pytest

from rlhf.models.scorer import MICROBATCH
from rlhf.workers.scorers import deal


@pytest.mark.parametrize("num_rows", [1, MICROBATCH, MICROBATCH + 1, 100])
def test_pieces_are_the_same_for_any_number_of_workers(num_rows: int) -> None:
    lengths = [random.Random(0).randrange(5, 60) for _ in range(num_rows)]
    alone = deal(lengths, 1)[0]
    assert sorted(row for piece in alone for row in piece) == list(range(num_rows))
    for num_workers in (2, 3, 7):
        dealt = deal(lengths, num_workers)
        assert len(dealt) == num_workers
        assert sorted(piece for own in dealt for piece in own) == sorted(alone)
        sizes = [len(own) for own in dealt]
        assert max(sizes) - min(sizes) <= 1
