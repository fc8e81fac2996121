"""Rows of several sources: how often each is in the data, and under which id."""

from __future__ import annotations

import pytest

from rlhf.data.mixing import mixed
from rlhf.data.schema import DemonstrationRow, Message, PromptRow


def rows(count: int, name: str = "p") -> list[PromptRow]:
    return [PromptRow(str(n), (Message("user", f"{name} {n}"),), {"n": n}) for n in range(count)]


def test_copies_and_shares() -> None:
    first, second = rows(2), rows(3, "q")
    found = mixed([(first, 2.0), (second, 1.0)])
    assert [row.id for row in found] == ["0/0", "0/1", "0/0#2", "0/1#2", "1/0", "1/1", "1/2"]
    assert [row.meta["n"] for row in found] == [0, 1, 0, 1, 0, 1, 2]
    assert found[2].messages == first[0].messages


@pytest.mark.parametrize("weight", [0.25, 0.5, 1.5])
def test_a_share_is_of_prompts_and_depends_on_them_alone(weight: float) -> None:
    many = rows(2000)
    found = mixed([(many, weight)])
    assert abs(len(found) / 2000 - weight) < 0.04
    twice = [DemonstrationRow(f"{n}-{m.id}", (*m.messages, Message("assistant", "a"))) for m in many for n in (0, 1)]
    share = [row for row in mixed([(twice[::-1], weight % 1)])]
    prompts = {row.prompt for row in found[-len(share) // 2 :]}
    assert {row.prompt for row in share} == prompts, "both rows of a prompt, whatever their order and kind"
