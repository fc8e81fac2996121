import math

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from rlhf.algos.kl import kl_k1, kl_k2, kl_k3
from rlhf.algos.rewards import (
    clip_scores,
    missing_eos_replace,
    missing_eos_scale,
    missing_eos_subtract,
    penalised_rewards,
    whiten_rewards_keep_mean,
)

from .support import assert_junk_proof, given, masks, normal, right_padded, seeds


def test_score_lands_on_the_eos_and_kl_on_every_token():
    mask = right_padded([3, 2], 4)
    logprobs = torch.tensor([[-1.0, -1.0, -1.0, 0.0], [-2.0, -0.5, 0.0, 0.0]])
    reference = torch.tensor([[-1.5, -1.0, -0.5, 0.0], [-1.0, -1.0, 0.0, 0.0]])
    rewards = penalised_rewards(torch.tensor([2.0, -3.0]), logprobs, reference, mask, kl_coef=0.1)
    np.testing.assert_allclose(rewards, [[-0.05, 0.0, 2.05, 0.0], [0.1, -3.05, 0.0, 0.0]], atol=1e-6)


@given(masks(), seeds, st.sampled_from([kl_k1, kl_k2, kl_k3]))
def test_rewards_of_a_row_add_up_to_score_minus_penalty(mask, seed, estimator):
    p, q = normal(seed, *mask.shape), normal(seed + 1, *mask.shape)
    scores = normal(seed + 2, mask.shape[0])
    rewards = penalised_rewards(scores, p, q, mask, kl_coef=0.3, kl=estimator)
    formula = {kl_k1: lambda d: d, kl_k2: lambda d: d * d / 2, kl_k3: lambda d: math.exp(-d) - 1 + d}[estimator]
    for i, keep in enumerate(mask.tolist()):
        kls = [formula((p[i, t] - q[i, t]).item()) for t, k in enumerate(keep) if k]
        expected = (scores[i].item() if kls else 0.0) - 0.3 * math.fsum(kls)
        assert rewards[i].sum().item() == pytest.approx(expected, abs=1e-10)


@given(masks(), seeds)
def test_padding_cannot_matter(mask, seed):
    scores = normal(seed + 2, mask.shape[0])
    function = lambda p, q, m: penalised_rewards(scores, p, q, m, kl_coef=0.2, kl=kl_k3)  # noqa: E731
    assert_junk_proof(function, [normal(seed, *mask.shape), normal(seed + 1, *mask.shape)], mask, differentiable=False)


def test_rewards_carry_no_gradient():
    logprobs = torch.zeros(1, 2, requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert not penalised_rewards(torch.ones(1), logprobs, torch.ones(1, 2), mask, kl_coef=1.0).requires_grad
    assert not whiten_rewards_keep_mean(logprobs, mask).requires_grad


SCORES = torch.tensor([1.5, 2.0, -1.0])
HAS_EOS = torch.tensor([True, False, False])


def test_missing_eos_three_ways():
    assert missing_eos_subtract(SCORES, HAS_EOS, penalty=1.0).tolist() == [1.5, 1.0, -2.0]
    assert missing_eos_replace(SCORES, HAS_EOS, value=-1.0).tolist() == [1.5, -1.0, -1.0]
    assert missing_eos_scale(SCORES, HAS_EOS, factor=0.5).tolist() == [1.5, 1.0, -0.5]


@given(seeds)
def test_rows_that_end_by_themselves_are_untouched(seed):
    scores = normal(seed, 4)
    ended = torch.ones(4, dtype=torch.bool)
    for out in (
        missing_eos_subtract(scores, ended, penalty=2.0),
        missing_eos_replace(scores, ended, value=-9.0),
        missing_eos_scale(scores, ended, factor=0.1),
    ):
        assert torch.equal(out, scores)


def test_wrong_penalties_are_refused():
    for penalty in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="penalty"):
            missing_eos_subtract(SCORES, HAS_EOS, penalty=penalty)
    for factor in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="factor"):
            missing_eos_scale(SCORES, HAS_EOS, factor=factor)
    assert missing_eos_scale(SCORES, HAS_EOS, factor=0.0).tolist() == [1.5, 0.0, 0.0]
    assert missing_eos_scale(SCORES, HAS_EOS, factor=1.0).tolist() == SCORES.tolist()


def test_clip_scores():
    assert clip_scores(torch.tensor([-5.0, 0.3, 8.0]), low=-1.0, high=2.0).tolist() == pytest.approx([-1.0, 0.3, 2.0])
    with pytest.raises(ValueError, match=r"low=2.*high=2"):
        clip_scores(SCORES, low=2.0, high=2.0)


@given(seeds)
def test_whitened_rewards_keep_their_mean_and_get_unit_variance(seed):
    mask = right_padded([4, 2, 5], 6)
    rewards = normal(seed, 3, 6, scale=4.0) + 3
    kept = rewards.numpy()[mask.numpy()]
    out = whiten_rewards_keep_mean(rewards.masked_fill(~mask, float("nan")), mask)
    np.testing.assert_allclose(out.numpy()[mask.numpy()], (kept - kept.mean()) / kept.std() + kept.mean(), atol=1e-6)
    assert (out[~mask] == 0).all()


@given(masks(), seeds)
def test_whitening_ignores_padding(mask, seed):
    assert_junk_proof(whiten_rewards_keep_mean, [normal(seed, *mask.shape)], mask, differentiable=False)
