"""Every round holds every row once, and a run that goes on finds the rows that it would have had."""

from __future__ import annotations

from rlhf.data.order import rows_at


def test_every_round_uses_every_row_once_in_another_order() -> None:
    rounds = [rows_at(0, "a", 5, 5 * i, 5) for i in range(4)]
    assert all(sorted(found) == [0, 1, 2, 3, 4] for found in rounds)
    assert len({tuple(found) for found in rounds}) > 1


def test_seeds_and_names_have_orders_of_their_own() -> None:
    orders = [rows_at(seed, name, 9, 0, 18) for seed in (0, 1) for name in ("a", "b")]
    assert len({tuple(order) for order in orders}) == 4
    assert rows_at(0, "a", 9, 0, 18) == orders[0]


def test_parts_are_those_of_the_whole() -> None:
    whole = rows_at(3, "a", 5, 0, 23)
    assert [row for first in range(23) for row in rows_at(3, "a", 5, first, 1)] == whole
    assert rows_at(3, "a", 5, 0, 8) + rows_at(3, "a", 5, 8, 15) == whole
    assert rows_at(3, "a", 5, 7, 0) == []
