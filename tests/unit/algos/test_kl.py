import json
import math

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from rlhf.algos.kl import (
    AdaptiveKLController,
    FixedKLController,
    kl_k1,
    kl_k2,
    kl_k3,
    masked_log_ratio,
    sequence_kl,
)
from rlhf.algos.losses import kl_loss_by_name, kl_loss_k2, kl_loss_k3
from rlhf.errors import CheckpointError, ConfigError, NumericsError

from .support import assert_junk_proof, given, masks, normal, seeds

ONE = torch.ones(1, 1, dtype=torch.bool)


@pytest.mark.parametrize(("estimator", "value"), [(kl_k1, 0.5), (kl_k2, 0.125), (kl_k3, 0.10653)])
def test_golden_values(estimator, value):
    policy, reference = torch.tensor([[-1.0]]), torch.tensor([[-1.5]])
    assert estimator(policy, reference, ONE).item() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("estimator", [kl_k1, kl_k2, kl_k3])
@given(masks(), seeds)
def test_padding_cannot_matter(estimator, mask, seed):
    inputs = [normal(seed, *mask.shape), normal(seed + 1, *mask.shape)]
    assert_junk_proof(estimator, inputs, mask, differentiable=True)


@pytest.mark.parametrize("estimator", [kl_k1, kl_k2, kl_k3])
def test_equal_logprobs_have_exactly_no_kl(estimator):
    logprobs = torch.randn(3, 4) * 20
    assert (estimator(logprobs, logprobs.clone(), torch.ones(3, 4, dtype=torch.bool)) == 0).all()


def test_one_number_per_sequence_is_not_spread_over_its_tokens():
    mask = torch.ones(2, 3, dtype=torch.bool)
    for policy, reference in [((2, 1), (2, 3)), ((2, 3), (2, 1))]:
        with pytest.raises(ValueError, match="mask has shape"):
            masked_log_ratio(torch.zeros(policy), torch.zeros(reference), mask)


def test_half_precision_inputs_are_subtracted_in_float32():
    policy, reference = torch.tensor([[-100.0]]).bfloat16(), torch.tensor([[-1.0078125]]).bfloat16()
    assert masked_log_ratio(policy, reference, ONE).item() == -98.9921875


class Categorical:
    """A policy and a reference over a few tokens, with exact expectations: no sampling.

    The policy has whole-number odds: a batch with each token repeated that often *is* its distribution.
    """

    odds = (1, 2, 3, 6, 8)

    def __init__(self) -> None:
        self.theta = torch.tensor(self.odds, dtype=torch.float64).log().requires_grad_()
        self.tokens = torch.tensor([[token for token, n in enumerate(self.odds) for _ in range(n)]])
        self.mask = torch.ones_like(self.tokens, dtype=torch.bool)
        self.logq = torch.log_softmax(normal(3, 5, scale=1.5), -1)

    @property
    def logp(self):
        return torch.log_softmax(self.theta, -1)

    def gradient(self, value):
        return torch.autograd.grad(value, self.theta)[0]

    def mean(self, estimator):
        per_token = estimator(self.logp[self.tokens], self.logq[self.tokens], self.mask)
        return per_token.sum() / self.tokens.numel()

    def reverse_kl(self):
        return (self.logp.exp() * (self.logp - self.logq)).sum()

    def forward_kl(self):
        return (self.logq.exp() * (self.logq - self.logp)).sum()


def test_k1_and_k3_have_the_kl_as_mean_and_k2_has_not():
    c = Categorical()
    exact = c.reverse_kl().item()
    assert exact > 0.3
    assert c.mean(kl_k1).item() == pytest.approx(exact, abs=1e-12)
    assert c.mean(kl_k3).item() == pytest.approx(exact, abs=1e-12)
    assert abs(c.mean(kl_k2).item() - exact) > 0.03


def test_k1_as_a_loss_has_no_gradient():
    c = Categorical()
    assert c.gradient(c.mean(kl_k1)).abs().max() < 1e-15
    assert c.gradient(c.reverse_kl()).norm() > 0.1


def test_k2_as_a_loss_has_the_reverse_kl_gradient():
    c = Categorical()
    loss = kl_loss_k2(c.logp[c.tokens], c.logq[c.tokens], c.mask, denominator=c.tokens.numel())
    torch.testing.assert_close(c.gradient(loss), c.gradient(c.reverse_kl()), atol=1e-14, rtol=0)
    assert loss.item() == pytest.approx(c.mean(kl_k2).item(), abs=1e-14)


def test_k3_as_a_loss_has_the_forward_kl_gradient():
    c = Categorical()
    loss = kl_loss_k3(c.logp[c.tokens], c.logq[c.tokens], c.mask, denominator=c.tokens.numel())
    gradient = c.gradient(loss)
    torch.testing.assert_close(gradient, c.gradient(c.forward_kl()), atol=1e-14, rtol=0)
    assert (gradient - c.gradient(c.reverse_kl())).norm() > 0.1
    assert loss.item() == pytest.approx(c.mean(kl_k3).item(), abs=1e-14)


@pytest.mark.parametrize("loss", [kl_loss_k2, kl_loss_k3])
def test_kl_losses_own_no_denominator_and_train_only_the_policy(loss):
    policy, reference = normal(0, 2, 3).requires_grad_(), normal(1, 2, 3).requires_grad_()
    mask = torch.tensor([[True, True, False], [True, False, False]])
    value = loss(policy, reference, mask, denominator=10)
    assert loss(policy, reference, mask, denominator=5).item() == pytest.approx(2 * value.item(), rel=1e-12)
    value.backward()
    assert reference.grad is None
    junk_proof = lambda p, q, m: loss(p, q, m, denominator=10)  # noqa: E731
    assert_junk_proof(junk_proof, [normal(0, 2, 3), normal(1, 2, 3)], mask, differentiable=True)


def test_k1_is_refused_as_a_loss():
    with pytest.raises(ConfigError, match=r"k1 cannot be a loss.*Use k2"):
        kl_loss_by_name("k1")
    with pytest.raises(ConfigError, match=r"'kl'.*k2.*k3"):
        kl_loss_by_name("kl")
    assert kl_loss_by_name("k2") is kl_loss_k2
    assert kl_loss_by_name("k3") is kl_loss_k3


@given(masks(), seeds)
def test_sequence_kl_sums_the_kept_log_ratios_of_each_row(mask, seed):
    p, q = normal(seed, *mask.shape), normal(seed + 1, *mask.shape)
    expected = [
        math.fsum(a - b for a, b, keep in zip(*row, strict=True) if keep)
        for row in zip(p.tolist(), q.tolist(), mask.tolist(), strict=True)
    ]
    assert sequence_kl(p, q, mask).tolist() == pytest.approx(expected, abs=1e-12)
    more = [torch.nn.functional.pad(x, (0, 4), value=float("nan")) for x in (p, q)]
    wider = sequence_kl(*more, torch.nn.functional.pad(mask, (0, 4), value=False))
    assert wider.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("kl", "coef"), [(12.0, 0.201024), (3.0, 0.198976), (6.0, 0.2), (6.6, 0.200512)])
def test_adaptive_controller_golden_values(kl, coef):
    controller = AdaptiveKLController(init_coef=0.2, target=6.0, horizon=1e4)
    controller.update(kl, 256)
    assert controller.coef == pytest.approx(coef, abs=1e-12)


def test_adaptive_controller_is_proportional_within_the_clip():
    controller = AdaptiveKLController(1.0, target=10.0, horizon=100)
    controller.update(11.0, 50)
    assert controller.coef == pytest.approx(1.05, abs=1e-12)
    controller.update(-3.0, 50)  # a negative estimate is possible and is the full error
    assert controller.coef == pytest.approx(1.05 * 0.9, abs=1e-12)


def test_adaptive_controller_resumes_exactly():
    kls = np.random.default_rng(0).uniform(1, 12, size=20)
    straight = AdaptiveKLController(0.2, 6.0, 1000)
    for kl in kls:
        straight.update(float(kl), 64)
    first = AdaptiveKLController(0.2, 6.0, 1000)
    for kl in kls[:11]:
        first.update(float(kl), 64)
    second = AdaptiveKLController(0.7, 6.0, 1000)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for kl in kls[11:]:
        second.update(float(kl), 64)
    assert second.coef == straight.coef != 0.2


def test_controllers_refuse_wrong_settings():
    for arguments in [
        (0.0, 6, 1e4),
        (0.2, 0, 1e4),
        (0.2, 6, 0),
        (0.2, -6, 1e4),
        (0.2, 6, math.inf),
        (math.nan, 6, 1),
    ]:
        with pytest.raises(ConfigError, match="must be a finite number above 0"):
            AdaptiveKLController(*arguments)
    for coef in (-0.1, math.nan, math.inf):
        with pytest.raises(ConfigError, match="coef"):
            FixedKLController(coef)
    assert FixedKLController(0).coef == 0.0


def test_a_horizon_that_could_turn_the_sign_is_refused():
    controller = AdaptiveKLController(0.2, 6.0, horizon=100)
    with pytest.raises(ConfigError, match=r"horizon=100.*500 sequences.*above 100"):
        controller.update(6.0, 500)
    controller.update(0.0, 499)
    assert 0 < controller.coef < 0.2


@pytest.mark.parametrize("controller", [FixedKLController(0.1), AdaptiveKLController(0.1, 6, 1e4)])
@pytest.mark.parametrize("kl", [math.nan, math.inf, -math.inf])
def test_a_kl_that_is_not_finite_stops(controller, kl):
    with pytest.raises(NumericsError, match=str(kl)):
        controller.update(kl, 8)
    assert controller.coef == 0.1


def test_fixed_controller_stays_and_checks_what_it_resumes():
    controller = FixedKLController(0.05)
    controller.update(100.0, 1000)
    assert controller.coef == 0.05
    FixedKLController(0.05).load_state_dict(controller.state_dict())
    with pytest.raises(CheckpointError, match=r"0\.05.*0\.06"):
        FixedKLController(0.06).load_state_dict(controller.state_dict())
    with pytest.raises(CheckpointError, match=r"'fixed'.*'adaptive'"):
        AdaptiveKLController(0.05, 6, 1e4).load_state_dict(controller.state_dict())
    with pytest.raises(CheckpointError, match=r"'adaptive'.*'fixed'"):
        controller.load_state_dict(AdaptiveKLController(0.05, 6, 1e4).state_dict())
    with pytest.raises(ConfigError, match="coef"):
        AdaptiveKLController(0.05, 6, 1e4).load_state_dict({"kind": "adaptive", "coef": -1.0})


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=30))
def test_adaptive_coefficient_stays_positive(kls):
    controller = AdaptiveKLController(0.2, 6.0, 300)
    for kl in kls:
        controller.update(kl, 256)
    assert controller.coef > 0
