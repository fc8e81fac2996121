"""The split of a shared pass follows the same count as the speed in every metrics row."""

from __future__ import annotations

import pytest

from rlhf.models.operations import UpdateCosts
from rlhf.models.role_shares import pass_operations, pass_shares, weight_shares

COSTS = UpdateCosts(body=1000, adapters=(10, 11), head=100, attention=2)


def test_parts_of_the_roles_are_the_whole_update() -> None:
    parts = pass_operations(COSTS, ["policy", "critic"], [5, 7], 4, trained=True)
    assert sum(parts.values()) == COSTS.update([5, 7], 4)
    assert parts["policy"] > parts["critic"]  # the critic needs no logits


def test_shares_add_up_to_one() -> None:
    judged = pass_shares(COSTS, ["policy", "ref", "critic", "reward"], [5, 7], 4, trained=False)
    assert sum(judged.values()) == pytest.approx(1)
    assert judged["policy"] == judged["ref"] > judged["critic"]
    assert judged["reward"] / judged["critic"] == pytest.approx(
        COSTS.role(0, [6, 8], 4, trained=False) / COSTS.role(0, [5, 7], 4, trained=False)
    ), "the reward model alone reads the last tokens"
    assert weight_shares(COSTS, ["policy", "critic"]) == {"policy": 10 / 21, "critic": 11 / 21}
