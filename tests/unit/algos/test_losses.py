import math

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from rlhf.algos.losses import (
    centering_loss,
    clipped_value_loss,
    pairwise_reward_loss,
    ppo_dual_clip_loss,
    ppo_policy_loss,
    sft_anchor_loss,
    truncated_importance_weights,
    truncated_sequence_weights_mean,
    truncated_sequence_weights_sum,
    value_loss,
)

from .support import assert_junk_proof, given, masks, normal, right_padded, seeds

ONE = torch.ones(1, 1, dtype=torch.bool)
CLIP = {"clip_low": 0.2, "clip_high": 0.2}


def one_token(ratio, advantage, function=ppo_policy_loss, **settings):
    """Loss and its derivative by log pi of a single token."""
    logprobs = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([[advantage]], dtype=torch.float64)
    out = function(logprobs, torch.zeros(1, 1), advantages, ONE, denominator=1, **settings)
    out.loss.backward()
    return out, logprobs.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.5, 1.0, -1.2, 0.0),
        (1.5, -1.0, 1.5, 1.5),
        (0.5, 1.0, -0.5, -0.5),
        (0.5, -1.0, 0.8, 0.0),
        (1.1, 2.0, -2.2, -2.2),
    ],
)
def test_policy_clip_golden_values(ratio, advantage, loss, slope):
    out, gradient = one_token(ratio, advantage, **CLIP)
    assert out.loss.item() == pytest.approx(loss, abs=1e-12)
    assert gradient == pytest.approx(slope, abs=1e-12)
    assert out.clip_fraction_sum.item() == (slope == 0.0)


def test_the_two_sides_of_the_clip_are_separate():
    assert one_token(3.0, 1.0, clip_low=0.2, clip_high=0.28)[0].loss.item() == pytest.approx(-1.28, abs=1e-12)
    assert one_token(0.1, -1.0, clip_low=0.2, clip_high=0.28)[0].loss.item() == pytest.approx(0.8, abs=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "clipped"),
    [
        (5.0, -1.0, 3.0, 0.0, 1),
        (2.0, -1.0, 2.0, 2.0, 0),
        (5.0, 1.0, -1.2, 0.0, 1),
        (0.5, -1.0, 0.8, 0.0, 1),
        (0.5, 2.0, -1.0, -1.0, 0),
    ],
)
def test_dual_clip_bounds_negative_advantages_only(ratio, advantage, loss, slope, clipped):
    out, gradient = one_token(ratio, advantage, ppo_dual_clip_loss, dual_clip=3.0, **CLIP)
    assert out.loss.item() == pytest.approx(loss, abs=1e-12)
    assert gradient == pytest.approx(slope, abs=1e-12)
    assert out.clip_fraction_sum.item() == clipped


def test_wrong_clips_are_refused():
    for low, high in [(0.0, 0.2), (1.0, 0.2), (-0.1, 0.2), (0.2, 0.0), (math.nan, 0.2), (0.2, math.nan)]:
        with pytest.raises(ValueError, match="clip_low"):
            one_token(1.0, 1.0, clip_low=low, clip_high=high)
    for dual_clip in (1.0, 0.5, math.nan):
        with pytest.raises(ValueError, match="dual_clip"):
            one_token(1.0, 1.0, ppo_dual_clip_loss, dual_clip=dual_clip, **CLIP)
    with pytest.raises(ValueError, match="value_loss"):
        clipped_value_loss(*[torch.zeros(1, 1)] * 3, ONE, clip=0.0, denominator=1)


def policy_loss_by_cases(logp, old, advantages, mask, low, high, dual):
    """Sum of token losses, number of flat tokens, and slopes, as drawn in arXiv:1707.06347, figure 1."""
    total, flat, slopes = 0.0, 0, np.zeros(mask.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        a, ratio = advantages[i, t], math.exp(logp[i, t] - old[i, t])
        ceiling = 1 + high if a > 0 else math.inf
        floor = 1 - low if a < 0 else -math.inf
        top = dual if dual and a < 0 else math.inf
        stop = min(max(ratio, floor), ceiling, top)
        total -= stop * a
        flat += stop != ratio
        slopes[i, t] = -a * ratio if stop == ratio else 0.0
    return total, flat, slopes


@given(masks(), seeds, st.sampled_from([None, 1.5]))
def test_policy_losses_agree_with_the_piecewise_definition(mask, seed, dual):
    logp, old, advantages = (normal(seed + i, *mask.shape, scale=0.7) for i in range(3))
    settings = {"clip_low": 0.2, "clip_high": 0.3, "denominator": 7}
    leaf = logp.clone().requires_grad_()
    if dual:
        out = ppo_dual_clip_loss(leaf, old, advantages, mask, dual_clip=dual, **settings)
    else:
        out = ppo_policy_loss(leaf, old, advantages, mask, **settings)
    total, flat, slopes = policy_loss_by_cases(
        logp.numpy(), old.numpy(), advantages.numpy(), mask.numpy(), 0.2, 0.3, dual
    )
    assert out.loss.item() == pytest.approx(total / 7, abs=1e-12)
    assert out.clip_fraction_sum.item() == flat
    out.loss.backward()
    np.testing.assert_allclose(leaf.grad.numpy(), slopes / 7, atol=1e-12)
    log_ratios = (logp - old).numpy()[mask.numpy()]
    assert out.num_tokens.item() == log_ratios.size
    assert out.ratio_sum.item() == pytest.approx(np.exp(log_ratios).sum(), abs=1e-10)
    assert out.ratio_deviation_max.item() == pytest.approx(np.abs(np.exp(log_ratios) - 1).max(initial=0.0), abs=1e-12)
    assert out.ratio_deviation_sum.item() == pytest.approx(np.abs(np.exp(log_ratios) - 1).sum(), abs=1e-10)
    assert out.approx_kl_sum.item() == pytest.approx((np.exp(log_ratios) - 1 - log_ratios).sum(), abs=1e-10)


def test_an_untouched_policy_has_ratio_one_exactly():
    logprobs = torch.randn(3, 5) * 10
    mask = right_padded([5, 2, 3], 5)
    out = ppo_policy_loss(logprobs, logprobs.clone(), torch.randn(3, 5), mask, denominator=10, **CLIP)
    assert out.ratio_deviation_max.item() == 0.0
    assert out.ratio_sum.item() == out.num_tokens.item() == 10
    assert out.approx_kl_sum.item() == 0.0
    assert out.clip_fraction_sum.item() == 0


def test_a_tiny_deviation_is_not_lost_in_float32():
    logprobs = torch.tensor([[3e-5]])
    out = ppo_policy_loss(logprobs, torch.zeros(1, 1), torch.ones(1, 1), ONE, denominator=1, **CLIP)
    assert out.ratio_deviation_max.item() == pytest.approx(3.00004e-5, rel=1e-5)


def test_an_exploded_ratio_has_stated_statistics():
    logprobs = torch.tensor([[-200.0, 0.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    out = ppo_policy_loss(logprobs, torch.zeros(1, 2), torch.ones(1, 2), mask, denominator=2, **CLIP)
    assert out.approx_kl_sum.item() == pytest.approx(199.0)


LOSSES = {
    "ppo": (3, lambda p, q, a, m: ppo_policy_loss(p, q, a, m, denominator=5, **CLIP)),
    "dual": (3, lambda p, q, a, m: ppo_dual_clip_loss(p, q, a, m, dual_clip=1.5, denominator=5, **CLIP)),
    "value": (2, lambda v, r, m: value_loss(v, r, m, denominator=5)),
    "clipped value": (3, lambda v, o, r, m: clipped_value_loss(v, o, r, m, clip=0.2, denominator=5)),
    "anchor": (1, lambda p, m: sft_anchor_loss(p, m, denominator=5)),
}


@pytest.mark.parametrize("name", LOSSES)
@given(masks(), seeds)
def test_padding_cannot_matter(name, mask, seed):
    num_inputs, function = LOSSES[name]
    inputs = [normal(seed + i, *mask.shape) for i in range(num_inputs)]
    assert_junk_proof(function, inputs, mask, differentiable=True)


@pytest.mark.parametrize("name", LOSSES)
def test_only_the_trained_input_gets_a_gradient_and_only_the_loss_has_one(name):
    num_inputs, function = LOSSES[name]
    inputs = [normal(i, 2, 3).requires_grad_() for i in range(num_inputs)]
    out = function(*inputs, torch.ones(2, 3, dtype=torch.bool))
    if not isinstance(out, torch.Tensor):
        assert [field for field, x in vars(out).items() if x.requires_grad] == ["loss"]
        out = out.loss
    out.backward()
    assert inputs[0].grad.abs().max() > 0
    assert all(x.grad is None for x in inputs[1:])


@pytest.mark.parametrize("name", LOSSES)
def test_no_input_is_broadcast(name):
    """One advantage per sequence, say, would silently become one per token."""
    num_inputs, function = LOSSES[name]
    for wrong in range(num_inputs):
        inputs = [torch.zeros(2, 1 if i == wrong else 3) for i in range(num_inputs)]
        with pytest.raises(ValueError, match="mask has shape"):
            function(*inputs, torch.ones(2, 3, dtype=torch.bool))


@pytest.mark.parametrize("name", LOSSES)
@given(seeds, st.permutations(range(4)), st.sampled_from([1, 2, 4]))
def test_parts_of_a_batch_in_any_order_add_up_to_the_whole(name, seed, order, num_parts):
    num_inputs, function = LOSSES[name]
    mask = right_padded([1, 6, 3, 2], 6)
    inputs = [normal(seed + i, 4, 6) for i in range(num_inputs)]

    def gradient_and_sums(parts):
        leaf = inputs[0].clone().requires_grad_()
        sums = None
        for rows in parts:
            width = int(mask[rows].sum(1).max())  # each part is only as wide as its longest row
            out = function(*[x[rows, :width] for x in [leaf, *inputs[1:]]], mask[rows, :width])
            fields = {"loss": out} if isinstance(out, torch.Tensor) else vars(out)
            fields["loss"].backward()
            values = torch.stack([x.detach().double() for n, x in fields.items() if not n.endswith("_max")])
            sums = values if sums is None else sums + values
        return leaf.grad, sums

    whole = gradient_and_sums([[0, 1, 2, 3]])
    size = 4 // num_parts
    parts = gradient_and_sums([list(order[i : i + size]) for i in range(0, 4, size)])
    torch.testing.assert_close(parts, whole, atol=1e-12, rtol=0)


def test_the_global_token_mean_is_not_the_mean_of_means():
    """10 tokens of loss 1 and 100 tokens of loss 2: 210 / 110, not 1.5."""
    first, second = -torch.ones(1, 10), -2 * torch.ones(1, 100)
    total = sum(
        sft_anchor_loss(x, torch.ones_like(x, dtype=torch.bool), denominator=torch.tensor(110)) for x in (first, second)
    )
    assert total.item() == pytest.approx(1.909, abs=1e-3)


def test_value_clip_golden_value():
    values = torch.tensor([[0.5]], requires_grad=True)
    out = clipped_value_loss(values, torch.zeros(1, 1), torch.ones(1, 1), ONE, clip=0.2, denominator=1)
    assert out.loss.item() == pytest.approx(0.32, abs=1e-6)
    assert out.clip_fraction_sum.item() == 1
    assert out.squared_error_sum.item() == pytest.approx(0.25)
    out.loss.backward()
    assert values.grad.item() == 0.0
    assert value_loss(values, torch.ones(1, 1), ONE, denominator=2).loss.item() == pytest.approx(0.0625)


@given(masks(), seeds)
def test_value_losses_agree_with_numpy(mask, seed):
    values, old, returns = (normal(seed + i, *mask.shape) for i in range(3))
    v, o, r = (x.numpy()[mask.numpy()] for x in (values, old, returns))
    far = np.abs(v - o) > 0.3
    near = np.where(far, o + 0.3 * np.sign(v - o), v)
    out = clipped_value_loss(values, old, returns, mask, clip=0.3, denominator=4)
    worst = np.where(np.abs(near - r) > np.abs(v - r), near, v)
    assert out.loss.item() == pytest.approx(((worst - r) ** 2).sum() / 8, abs=1e-10)
    assert out.clip_fraction_sum.item() == (worst != v).sum()
    plain = value_loss(values, returns, mask, denominator=4)
    assert plain.loss.item() == pytest.approx(((v - r) ** 2).sum() / 8, abs=1e-10)
    assert plain.clip_fraction_sum.item() == 0
    for loss in (out, plain):
        assert loss.squared_error_sum.item() == pytest.approx(((v - r) ** 2).sum(), abs=1e-10)
        assert loss.num_tokens.item() == v.size


def test_values_within_reach_are_never_counted_as_clipped() -> None:
    """Old value plus movement is not always the new value to the last bit."""
    generator = torch.Generator().manual_seed(0)
    old, values, returns = (size * (torch.rand(64, 64, generator=generator) - 0.5) for size in (0.3, 0.001, 1.0))
    values.requires_grad_()
    mask = torch.ones(64, 64, dtype=torch.bool)
    assert not torch.equal(old + (values - old), values), "nothing to be seen here"
    out = clipped_value_loss(values, old, returns, mask, clip=0.2, denominator=64 * 64)
    assert float(out.clip_fraction_sum) == 0.0
    torch.testing.assert_close(torch.autograd.grad(out.loss, values)[0], (values.detach() - returns) / 64**2)


def test_importance_weights_are_capped_from_above_only():
    """At +4 nats the ratio is 54.6 and becomes the cap; at -4 nats it stays 0.0183."""
    logprobs = torch.tensor([[-1.0, -5.0, -1.0, float("nan")]])
    behaviour = torch.tensor([[-5.0, -1.0, -1.5, -1.0]])
    mask = torch.tensor([[True, True, True, False]])
    weights = truncated_importance_weights(logprobs.requires_grad_(), behaviour, mask, cap=5.0)
    assert weights[0].tolist() == pytest.approx([5.0, 0.0183156, 1.6487213, 0.0], abs=1e-6)
    assert not weights.requires_grad


def test_sequence_weights_by_sum_and_by_mean():
    logprobs = torch.tensor([[0.5, -0.2, 0.0], [2.0, 2.0, 2.0], [9.0, 9.0, 9.0]], requires_grad=True)
    behaviour = torch.zeros(3, 3)
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    by_sum = truncated_sequence_weights_sum(logprobs, behaviour, mask, cap=5.0)
    by_mean = truncated_sequence_weights_mean(logprobs, behaviour, mask, cap=5.0)
    assert by_sum.tolist() == pytest.approx([math.exp(0.3), 5.0, 1.0])
    assert by_mean.tolist() == pytest.approx([math.exp(0.15), 5.0, 1.0])
    assert truncated_sequence_weights_mean(logprobs, behaviour, mask, cap=8.0)[1].item() == pytest.approx(math.exp(2))
    assert truncated_sequence_weights_sum(-logprobs, behaviour, mask, cap=5.0)[1].item() == pytest.approx(math.exp(-6))
    assert not by_sum.requires_grad and not by_mean.requires_grad


@pytest.mark.parametrize(
    "function",
    [truncated_importance_weights, truncated_sequence_weights_sum, truncated_sequence_weights_mean],
)
@given(masks(), seeds)
def test_importance_weights_ignore_padding_and_are_positive(function, mask, seed):
    inputs = [normal(seed, *mask.shape, scale=4.0), normal(seed + 1, *mask.shape)]
    assert_junk_proof(lambda p, q, m: function(p, q, m, cap=2.0), inputs, mask, differentiable=False)
    weights = function(*inputs, mask, cap=2.0)
    kept = weights[mask] if weights.dim() == 2 else weights
    assert ((kept > 0) & (kept <= 2.0)).all()
    for cap in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="cap"):
            function(*inputs, mask, cap=cap)


def test_weighted_advantages_weigh_the_loss():
    """Weights are not negative, so that multiplying the advantages multiplies the clipped loss."""
    logp, old, advantages = (normal(i, 3, 4) for i in range(3))
    mask = torch.ones(3, 4, dtype=torch.bool)
    weights = truncated_importance_weights(old, normal(5, 3, 4), mask, cap=2.0)
    weighted = ppo_policy_loss(logp, old, advantages * weights, mask, denominator=1, **CLIP).loss
    by_token = sum(
        weights[i, t]
        * ppo_policy_loss(*(x[i : i + 1, t : t + 1] for x in (logp, old, advantages, mask)), denominator=1, **CLIP).loss
        for i in range(3)
        for t in range(4)
    )
    assert weighted.item() == pytest.approx(by_token.item(), abs=1e-12)


def test_equal_scores_lose_ln2_and_count_as_wrong():
    scores = torch.tensor([3.0, -2.0])
    out = pairwise_reward_loss(scores, scores.clone(), denominator=2)
    assert out.loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert out.correct_sum.item() == 0
    out = pairwise_reward_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), denominator=2)
    assert out.correct_sum.item() == 1
    assert out.difference_sum.item() == pytest.approx(-1.0)


@given(seeds)
def test_pairwise_loss_is_the_cross_entropy_of_bradley_terry(seed):
    chosen, rejected = normal(seed, 5), normal(seed + 1, 5)
    probability, margin, weight = (normal(seed + i, 5).sigmoid() for i in (2, 3, 4))
    model = 1 / (1 + np.exp(-(chosen - rejected - margin).numpy()))
    p = probability.numpy()
    expected = weight.numpy() * -(p * np.log(model) + (1 - p) * np.log(1 - model))
    out = pairwise_reward_loss(
        chosen, rejected, probability=probability, margin=margin, weight=weight, denominator=weight.sum()
    )
    assert out.loss.item() == pytest.approx(expected.sum() / weight.sum().item(), abs=1e-5)
    hard = pairwise_reward_loss(chosen, rejected, probability=torch.ones(5), denominator=1).loss
    assert hard.item() == pytest.approx(pairwise_reward_loss(chosen, rejected, denominator=1).loss.item(), abs=1e-5)


def test_a_soft_label_is_met_where_the_model_agrees_with_it():
    probability = torch.tensor([0.75])
    chosen = torch.tensor([math.log(3.0)], requires_grad=True)
    pairwise_reward_loss(chosen, torch.zeros(1), probability=probability, denominator=1).loss.backward()
    assert chosen.grad.item() == pytest.approx(0.0, abs=1e-6)


def test_a_margin_asks_for_a_larger_difference_but_not_for_another_winner():
    out = pairwise_reward_loss(torch.tensor([1.0]), torch.tensor([0.0]), margin=torch.tensor([2.0]), denominator=1)
    assert out.loss.item() == pytest.approx(math.log(1 + math.e), abs=1e-6)
    assert out.correct_sum.item() == 1


def test_pairwise_loss_is_computed_in_float32_and_does_not_overflow():
    chosen = torch.tensor([-300.0, 0.01], dtype=torch.bfloat16, requires_grad=True)
    rejected = torch.tensor([300.0, 0.0], dtype=torch.bfloat16)
    out = pairwise_reward_loss(chosen, rejected, denominator=1)
    assert out.loss.dtype == torch.float32
    assert out.loss.item() == pytest.approx(600.688154, abs=2e-4)
    out.loss.backward()
    assert torch.isfinite(chosen.grad).all()
    assert not out.difference_sum.requires_grad


def test_centering_loss_pulls_the_sum_of_a_pair_to_zero():
    chosen, rejected = torch.tensor([2.0, 1.0], requires_grad=True), torch.tensor([-1.0, -1.0])
    loss = centering_loss(chosen, rejected, denominator=4)
    assert loss.item() == pytest.approx(0.25)
    loss.backward()
    assert chosen.grad.tolist() == [0.5, 0.0]


def test_anchor_loss_is_the_cross_entropy_of_the_kept_tokens():
    logprobs = torch.tensor([[-1.0, -2.0, float("nan")], [-4.0, float("nan"), float("inf")]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert sft_anchor_loss(logprobs, mask, denominator=2).item() == pytest.approx(3.5)
