import math

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from rlhf.algos.advantages import (
    discounted_returns,
    explained_variance,
    gae,
    grpo_advantages,
    reinforce_plus_plus_advantages,
    rloo_advantages,
    whiten_advantages,
)
from rlhf.algos.moments import masked_moments

from .support import assert_junk_proof, given, masks, normal, right_padded, seeds

discounts = st.sampled_from([0.0, 0.5, 0.9, 0.95, 1.0])


def gae_by_k_step_returns(rewards, values, bootstrap, gamma, lam):
    """arXiv:1506.02438, eq. 16 as it is defined: the weighted mean of all k-step advantage estimates.

    An episode of n tokens left has n estimates; the last, which sees the end, has the rest of the weight.
    """
    n = len(rewards)
    values = [*values, bootstrap]
    advantages = []
    for t in range(n):
        left = n - t
        total = 0.0
        for k in range(1, left + 1):
            k_step = sum(gamma**i * rewards[t + i] for i in range(k)) + gamma**k * values[t + k] - values[t]
            total += (lam ** (k - 1) if k == left else (1 - lam) * lam ** (k - 1)) * k_step
        advantages.append(total)
    return advantages


def one_row(*numbers):
    return torch.tensor([numbers], dtype=torch.float64)


def ones_like(x):
    return torch.ones_like(x, dtype=torch.bool)


def test_gae_golden_values():
    rewards = one_row(0, 0, 1)
    out = gae(rewards, one_row(0.5, 0.4, 0.3), ones_like(rewards), gamma=1.0, lam=0.95)
    np.testing.assert_allclose(out.advantages, [[0.43675, 0.565, 0.7]], atol=1e-12)
    np.testing.assert_allclose(out.returns, [[0.93675, 0.965, 1.0]], atol=1e-12)


def test_gae_golden_values_with_the_score_after_the_eos():
    rewards = one_row(0, 0, 0, 1)
    out = gae(rewards, one_row(0.5, 0.4, 0.3, 0.25), ones_like(rewards), gamma=1.0, lam=0.95)
    np.testing.assert_allclose(out.advantages, [[0.4029, 0.5294, 0.6625, 0.75]], atol=5e-5)


@given(masks(), seeds, discounts, discounts, st.booleans())
def test_gae_agrees_with_the_k_step_definition_on_the_kept_tokens(mask, seed, gamma, lam, cut_off):
    rewards, values = normal(seed, *mask.shape), normal(seed + 1, *mask.shape)
    bootstrap = normal(seed + 2, mask.shape[0]) if cut_off else None
    junk = [x.masked_fill(~mask, float("nan")) for x in (rewards, values)]
    out = gae(*junk, mask, gamma=gamma, lam=lam, bootstrap=bootstrap)
    for i in range(mask.shape[0]):
        keep = mask[i]
        end = bootstrap[i].item() if cut_off else 0.0
        expected = gae_by_k_step_returns(rewards[i][keep].tolist(), values[i][keep].tolist(), end, gamma, lam)
        assert out.advantages[i][keep].tolist() == pytest.approx(expected, abs=1e-10)
        assert out.returns[i][keep].tolist() == pytest.approx(
            [a + v for a, v in zip(expected, values[i][keep].tolist(), strict=True)], abs=1e-10
        )


@given(masks(), seeds)
def test_gae_ignores_padding(mask, seed):
    function = lambda r, v, m: gae(r, v, m, gamma=0.9, lam=0.8)  # noqa: E731
    assert_junk_proof(function, [normal(seed, *mask.shape), normal(seed + 1, *mask.shape)], mask, differentiable=False)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
def test_observation_tokens_between_turns_change_nothing(lam):
    """Two action turns; then the same with observation tokens, full of junk, between and after."""
    rewards, values = one_row(0.1, -0.2, 0.3, 1.0), one_row(0.5, 0.4, 0.3, 0.2)
    plain = gae(rewards, values, ones_like(rewards), gamma=0.9, lam=lam)
    mask = torch.tensor([[True, True, False, False, False, True, True, False]])
    with_observations = torch.full((2, 1, 8), 100.0, dtype=torch.float64)
    with_observations[0][mask], with_observations[1][mask] = rewards[0], values[0]
    out = gae(*with_observations, mask, gamma=0.9, lam=lam)
    assert out.advantages[mask].tolist() == plain.advantages[0].tolist()
    assert out.returns[mask].tolist() == plain.returns[0].tolist()


def test_gae_is_a_constant_of_the_critic():
    values = torch.ones(1, 3, requires_grad=True)
    out = gae(torch.ones(1, 3), values, ones_like(values), gamma=1.0, lam=0.9)
    assert not out.advantages.requires_grad and not out.returns.requires_grad


def test_gae_of_half_precision_is_computed_in_float32():
    rewards = torch.zeros(1, 3, dtype=torch.bfloat16)
    rewards[0, -1] = 1
    values = torch.zeros(1, 3, dtype=torch.bfloat16)
    out = gae(rewards, values, ones_like(values), gamma=1.0, lam=0.95)
    np.testing.assert_allclose(out.advantages, [[0.9025, 0.95, 1.0]], atol=1e-6)


@given(masks(), seeds, discounts)
def test_discounted_returns_sum_what_is_still_to_come(mask, seed, gamma):
    rewards = normal(seed, *mask.shape)
    out = discounted_returns(rewards.masked_fill(~mask, float("inf")), mask, gamma=gamma)
    for i, keep in enumerate(mask):
        r = rewards[i][keep].tolist()
        expected = [sum(gamma ** (k - t) * r[k] for k in range(t, len(r))) for t in range(len(r))]
        assert out[i][keep].tolist() == pytest.approx(expected, abs=1e-10)
        assert (out[i][~keep] == 0).all()


def test_whitening_golden_values():
    advantages = one_row(0.43675, 0.565, 0.7)
    whitened = whiten_advantages(advantages, ones_like(advantages))
    np.testing.assert_allclose(whitened, [[-1.2141, -0.0209, 1.2351]], atol=5e-5)


@given(masks(), seeds)
def test_whitening_is_the_z_score_of_the_kept_numbers(mask, seed):
    advantages = normal(seed, *mask.shape, scale=5.0) + 2
    kept = advantages.numpy()[mask.numpy()]
    out = whiten_advantages(advantages, mask)
    if kept.size > 1:
        np.testing.assert_allclose(out.numpy()[mask.numpy()], (kept - kept.mean()) / kept.std(), atol=1e-4)
    assert (out[~mask] == 0).all()
    assert_junk_proof(whiten_advantages, [advantages], mask, differentiable=False)


def test_equal_advantages_whiten_to_zero():
    advantages = torch.full((2, 3), 0.3)
    assert whiten_advantages(advantages, ones_like(advantages)).abs().max() < 1e-3


@given(seeds, st.sampled_from([1, 2, 3, 6]))
def test_whitening_does_not_depend_on_the_number_of_ranks(seed, num_ranks):
    mask = right_padded([1, 5, 2, 7, 3, 4], 7)
    advantages = normal(seed, 6, 7)
    whole = whiten_advantages(advantages, mask)
    parts = list(zip(advantages.chunk(num_ranks), mask.chunk(num_ranks), strict=True))
    moments = masked_moments(*parts[0])
    for part in parts[1:]:
        moments = moments.merge(masked_moments(*part))
    by_rank = torch.cat([whiten_advantages(a, m, moments=moments) for a, m in parts])
    torch.testing.assert_close(by_rank, whole, atol=1e-12, rtol=0)
    assert whiten_advantages(advantages.float(), mask, moments=moments).dtype == torch.float32


SCORES = torch.tensor([1.0, 5.0, 3.0, 7.0, 2.0, 9.0])
GROUPS = torch.tensor([4, 0, 4, 0, 4, 0])
MASK = right_padded([2, 1, 3, 2, 1, 3], 3)


def test_grpo_golden_values():
    """Groups (1, 3, 2) and (5, 7, 9): means 2 and 7, biased variances 2/3 and 8/3."""
    plain = grpo_advantages(SCORES, GROUPS, MASK, scale_by_std=False)
    scaled = grpo_advantages(SCORES, GROUPS, MASK, scale_by_std=True)
    assert plain.dtype == torch.float32
    assert plain[:, 0].tolist() == [-1.0, -2.0, 1.0, 0.0, 0.0, 2.0]
    unit = math.sqrt(1.5)
    assert scaled[:, 0].tolist() == pytest.approx([-unit, -unit, unit, 0.0, 0.0, unit], abs=1e-5)
    for out in (plain, scaled):
        assert torch.equal(out, out[:, :1].expand(6, 3).masked_fill(~MASK, 0.0))


def test_rloo_golden_values():
    """Each score minus the mean of the two others of its group."""
    out = rloo_advantages(SCORES, GROUPS, MASK)
    assert out[:, 0].tolist() == pytest.approx([1 - 2.5, 5 - 8, 3 - 1.5, 7 - 7, 2 - 2, 9 - 6], abs=1e-6)
    assert torch.equal(out, out[:, :1].expand(6, 3).masked_fill(~MASK, 0.0))


@given(st.lists(st.tuples(st.integers(-3, 3), st.floats(-10, 10, width=32)), min_size=2, max_size=12))
def test_group_advantages_agree_with_counting_by_hand(rows):
    groups = [g for g, _ in rows]
    assignments = torch.tensor(groups)
    scores = torch.tensor([s for _, s in rows])
    mask = torch.ones(len(rows), 2, dtype=torch.bool)
    members = {g: [s for h, s in rows if h == g] for g in groups}
    out = grpo_advantages(scores, assignments, mask, scale_by_std=False)[:, 0]
    assert out.tolist() == pytest.approx([s - np.mean(members[g]) for g, s in rows], abs=1e-5)
    if min(len(m) for m in members.values()) < 2:
        with pytest.raises(ValueError, match="at least 2"):
            rloo_advantages(scores, assignments, mask)
        return
    others = [(sum(members[g]) - s) / (len(members[g]) - 1) for g, s in rows]
    expected = [s - o for (_, s), o in zip(rows, others, strict=True)]
    assert rloo_advantages(scores, assignments, mask)[:, 0].tolist() == pytest.approx(expected, abs=1e-4)


@given(st.permutations(range(6)))
def test_group_advantages_follow_a_permutation_of_the_rows(order):
    order = list(order)
    for function in (
        lambda *a: grpo_advantages(*a, scale_by_std=True),
        rloo_advantages,
    ):
        torch.testing.assert_close(
            function(SCORES[order], GROUPS[order], MASK[order]), function(SCORES, GROUPS, MASK)[order]
        )


def test_equal_scores_teach_nothing():
    scores = torch.full((4,), 0.1)
    groups = torch.tensor([0, 0, 0, 1])
    out = grpo_advantages(scores, groups, torch.ones(4, 1, dtype=torch.bool), scale_by_std=True)
    assert out.abs().max() < 1e-6


def test_group_shapes_are_checked():
    with pytest.raises(ValueError, match="group_ids"):
        grpo_advantages(torch.ones(3), torch.zeros(2), torch.ones(3, 1, dtype=torch.bool), scale_by_std=False)
    with pytest.raises(ValueError, match="group_ids"):
        rloo_advantages(torch.ones(2, 1), torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.bool))


@given(seeds)
def test_reinforce_plus_plus_is_the_whitened_return(seed):
    mask = right_padded([3, 1, 4], 5)
    rewards = normal(seed, 3, 5)
    to_go = [
        [sum(0.9 ** (k - t) * rewards[i, k].item() for k in range(t, n)) for t in range(n)]
        for i, n in enumerate((3, 1, 4))
    ]
    flat = np.array([x for row in to_go for x in row])
    out = reinforce_plus_plus_advantages(rewards.masked_fill(~mask, float("nan")), mask, 0.9)
    np.testing.assert_allclose(out[mask], (flat - flat.mean()) / flat.std(), atol=1e-5)
    assert (out[~mask] == 0).all()


@given(masks(), seeds)
def test_explained_variance_agrees_with_numpy(mask, seed):
    values, returns = normal(seed, *mask.shape), normal(seed + 1, *mask.shape, scale=2.0)
    kept_values, kept_returns = values.numpy()[mask.numpy()], returns.numpy()[mask.numpy()]
    out = explained_variance(
        values.masked_fill(~mask, float("nan")), returns.masked_fill(~mask, float("inf")), mask
    ).item()
    if kept_values.size < 2:
        assert math.isnan(out)
    else:
        assert out == pytest.approx(1 - np.var(kept_returns - kept_values) / np.var(kept_returns), rel=1e-9)


def test_explained_variance_of_perfect_and_of_constant_values():
    returns = one_row(1, 2, 4)
    assert explained_variance(returns, returns, ones_like(returns)).item() == 1.0
    assert explained_variance(one_row(3, 3, 3), returns, ones_like(returns)).item() == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(explained_variance(returns, one_row(2, 2, 2), ones_like(returns)).item())
    with pytest.raises(ValueError, match="mask has shape"):
        explained_variance(returns[:, :1], returns, ones_like(returns))
