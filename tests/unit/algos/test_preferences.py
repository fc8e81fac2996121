import math

import numpy as np
import pytest
import torch

from rlhf.algos.losses import pairwise_reward_loss
from rlhf.algos.preferences import hinge_preference_loss, ipo_preference_loss, robust_preference_loss

from .support import given, normal, seeds

SURE = {"probability": torch.ones(1), "weight": torch.ones(1), "denominator": 1}


def slope(loss, at, **settings):
    difference = torch.tensor([at], requires_grad=True)
    value = loss(difference, **settings, **SURE)
    value.backward()
    return value.item(), difference.grad.item()


@pytest.mark.parametrize(("at", "value", "gradient"), [(0.0, 1.0, -1.0), (-2.0, 3.0, -1.0), (1.5, 0.0, 0.0)])
def test_hinge_golden_values(at, value, gradient):
    assert slope(hinge_preference_loss, at) == pytest.approx((value, gradient))


@pytest.mark.parametrize(("at", "value", "gradient"), [(0.0, 25.0, -10.0), (5.0, 0.0, 0.0), (6.0, 1.0, 2.0)])
def test_ipo_aims_at_half_of_one_over_beta(at, value, gradient):
    assert slope(ipo_preference_loss, at, beta=0.1) == pytest.approx((value, gradient))


def test_robust_golden_values():
    assert slope(robust_preference_loss, 0.0, label_smoothing=0.0) == pytest.approx((math.log(2), -0.5))
    # 0.8 of the labels right: (0.8 log(1 + e^-1) - 0.2 log(1 + e)) / 0.6
    value, _ = slope(robust_preference_loss, 1.0, label_smoothing=0.2)
    assert value == pytest.approx((0.8 * math.log1p(math.exp(-1)) - 0.2 * math.log1p(math.e)) / 0.6, abs=1e-6)


@given(seeds)
def test_the_robust_loss_is_right_on_average_over_flips(seed):
    """Its very purpose: labels that are flipped with the known rate give, in expectation, the loss of the true ones."""
    difference, rate = 3 * normal(seed, 6), 0.3
    ones = {"probability": torch.ones(6), "weight": torch.ones(6), "denominator": 6}
    noisy = [robust_preference_loss(sign * difference, label_smoothing=rate, **ones).item() for sign in (1, -1)]
    true = pairwise_reward_loss(difference, torch.zeros(6), denominator=6).loss.item()
    assert (1 - rate) * noisy[0] + rate * noisy[1] == pytest.approx(true, abs=1e-5)


LOSSES = [
    (hinge_preference_loss, {}, lambda d: np.maximum(0, 1 - d)),
    (ipo_preference_loss, {"beta": 0.4}, lambda d: (d - 1.25) ** 2),
    (robust_preference_loss, {"label_smoothing": 0.1},
     lambda d: (0.9 * np.log1p(np.exp(-d)) - 0.1 * np.log1p(np.exp(d))) / 0.8),
]  # fmt: skip


@given(seeds)
def test_votes_and_weights_count_as_so_many_pairs(seed):
    """Soft labels are the mean over votes, weights are repetitions, and the divisor is the caller's."""
    difference = 3 * normal(seed, 4)
    votes, counts = np.array([3, 2, 0, 1]), np.array([2, 1, 3, 0])
    probability, weight = torch.tensor(votes / 3), torch.tensor(counts).double()
    for loss, settings, oracle in LOSSES:
        expected = 0.0
        for d, agreeing, count in zip(difference.tolist(), votes, counts, strict=True):
            expected += count * (agreeing * oracle(d) + (3 - agreeing) * oracle(-d)) / 3
        found = loss(difference, probability=probability, weight=weight, denominator=7, **settings)
        assert found.item() == pytest.approx(expected / 7, rel=1e-4, abs=1e-5)


def test_half_precision_is_widened_and_nothing_overflows():
    difference = torch.tensor([-300.0, 0.01], dtype=torch.bfloat16, requires_grad=True)
    pair = {"probability": torch.ones(2), "weight": torch.ones(2), "denominator": 2}
    for loss, settings, oracle in LOSSES:
        found = loss(difference, **settings, **pair)
        exact = oracle(difference.detach().double().numpy()).mean()
        assert found.dtype == torch.float32 and found.item() == pytest.approx(exact, rel=1e-5)
    found.backward()
    assert torch.isfinite(difference.grad).all()
