"""An interval is never a point, ties count half, a prompt that is asked twice is one prompt."""

from __future__ import annotations

import random

import pytest

from rlhf.stages.win_rate import win_rate


def rate(wins: list[float], groups: list[str] | None = None) -> tuple[float, float, float, int, bool]:
    found = win_rate(wins, [0.5] * len(wins), groups or [str(n) for n in range(len(wins))])
    return found.mean, found.ci_low, found.ci_high, found.num_prompts, found.too_few


def test_ten_of_ten_are_no_certainty() -> None:
    mean, low, high, count, too_few = rate([1.0] * 10)
    assert (mean, high, count, too_few) == (1.0, 1.0, 10, True)
    assert low == pytest.approx(0.7225, abs=1e-4)  # 10 / (10 + 1.96^2)


def test_ties_alone_are_no_certainty_either() -> None:
    mean, low, high, _, too_few = rate([0.5] * 100)
    assert mean == 0.5 and not too_few
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)


@pytest.mark.parametrize(("count", "too_few"), [(1, True), (19, True), (20, False)])
def test_few_prompts_are_told(count: int, too_few: bool) -> None:
    assert rate([1.0] * count)[4] is too_few


def test_copies_of_a_prompt_make_nothing_surer() -> None:
    wins = [1.0, 0.0, 0.5, 1.0]
    copied = rate(wins * 50, ["a", "b", "c", "d"] * 50)
    assert copied == rate(wins)
    assert rate([1.0, 0.0, 1.0], ["a", "a", "b"])[0] == 0.75, "each prompt weighs 1, however often it was asked"


@pytest.mark.parametrize(("win", "tie"), [(0.5, 0.0), (0.9, 0.0), (0.3, 0.4), (0.97, 0.02), (0.1, 0.8)])
@pytest.mark.parametrize("count", [10, 30, 200])
def test_the_interval_holds_the_truth_as_often_as_it_says(win: float, tie: float, count: int) -> None:
    """Against draws from a known rate; the bound leaves room for the steps of few prompts and for 600 trials."""
    rng, held = random.Random(count), 0
    for _ in range(600):
        outcomes = rng.choices([1.0, 0.5, 0.0], weights=[win, tie, 1 - win - tie], k=count)
        _, low, high, _, _ = rate(outcomes)
        held += low <= win + tie / 2 <= high
    assert held / 600 >= 0.92
