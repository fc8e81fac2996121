"""Scores to advantages: the recipe's choices, against sums written out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlhf.config import PpoConfig, build_config
from rlhf.rollout.experience import Experience, collect
from rlhf.rollout.protocol import Rollout
from rlhf.stages.judging import compute_advantages

LENGTHS = (3, 1, 5, 2)
SCORES = torch.tensor([1.0, -2.0, 0.5, 3.0])
GROUPS = torch.tensor([7, 7, 4, 4])


def config(**changes: Any) -> PpoConfig:
    tree: dict[str, Any] = {
        "run_dir": "x",
        "model": {"name": "m"},
        "prompts": "p",
        "scores": [{"kind": "function", "path": "a:b"}],
        "batch": {"prompts_per_step": 4, "responses_per_prompt": 4, "minibatch_sequences": 16},
    }
    for key, value in changes.items():
        section, name = key.split("__")
        tree.setdefault(section, {})[name] = value
    return build_config(PpoConfig, tree, source="test")


def batch(junk: float = float("nan")) -> Experience:
    """Four ragged rows; masked slots hold junk."""
    rollouts = [Rollout(str(i), (5, 6), (9,) * n, (-1.0,) * n, True, 0, "x") for i, n in enumerate(LENGTHS)]
    plain = collect(rollouts, 0)
    generator = torch.Generator().manual_seed(0)

    def tensor(scale: float) -> Tensor:
        return (torch.randn(4, 5, generator=generator) * scale).masked_fill(~plain.response_mask, junk)

    return plain.with_judgement(old_logprobs=tensor(1.0), ref_logprobs=tensor(1.0), values=tensor(0.5))


def rewards_by_hand(found: Experience, coef: float) -> list[np.ndarray]:
    rows = []
    for row, length in enumerate(LENGTHS):
        reward = -coef * (found.old_logprobs[row, :length] - found.ref_logprobs[row, :length]).double().numpy()
        reward[-1] += float(SCORES[row])
        rows.append(reward)
    return rows


def test_gae_on_penalised_rewards() -> None:
    found, coef = batch(), 0.3
    judged = compute_advantages(found, SCORES, config(advantage__whiten=False, advantage__gamma=0.9), coef, GROUPS)
    for row, reward in enumerate(rewards_by_hand(found, coef)):
        values = [*found.values[row, : len(reward)].double().tolist(), 0.0]
        deltas = [reward[t] + 0.9 * values[t + 1] - values[t] for t in range(len(reward))]
        for t in range(len(reward)):
            expected = sum((0.9 * 0.95) ** (k - t) * deltas[k] for k in range(t, len(reward)))
            assert judged.batch.advantages[row, t].item() == pytest.approx(expected, abs=1e-5)
            assert judged.batch.returns[row, t].item() == pytest.approx(expected + values[t], abs=1e-5)
    assert (judged.batch.advantages[~found.response_mask] == 0).all()
    assert judged.explained_variance is not None


def test_whitening_is_over_all_kept_tokens_and_leaves_returns_alone() -> None:
    plain = compute_advantages(batch(), SCORES, config(advantage__whiten=False), 0.1, GROUPS).batch
    white = compute_advantages(batch(), SCORES, config(), 0.1, GROUPS).batch
    kept = white.advantages[white.response_mask].double()
    assert kept.mean().abs() < 1e-6 and abs(kept.std(unbiased=False) - 1) < 1e-3
    assert torch.equal(plain.returns, white.returns)
    order = plain.advantages[plain.response_mask].argsort()
    assert torch.equal(order, white.advantages[white.response_mask].argsort())


@pytest.mark.parametrize("mode", ["loss", "none"])
def test_kl_stays_out_of_the_reward_unless_it_belongs_there(mode: str) -> None:
    judged = compute_advantages(batch(), SCORES, config(kl__mode=mode, kl__estimator="k2"), 0.3, GROUPS)
    for row, length in enumerate(LENGTHS):
        expected = torch.zeros(5)
        expected[length - 1] = SCORES[row]
        assert torch.equal(judged.rewards[row], expected)


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_group_methods_compare_answers_of_one_prompt(method: str) -> None:
    settings = config(advantage__method=method, kl__mode="none")
    found = compute_advantages(batch(), SCORES, settings, 0.0, GROUPS)
    per_row = [found.batch.advantages[row, 0].item() for row in range(4)]
    if method == "rloo":  # against the mean of the others of the group
        assert per_row == pytest.approx([1.0 - -2.0, -2.0 - 1.0, 0.5 - 3.0, 3.0 - 0.5])
    else:
        assert per_row[0] > 0 > per_row[1] and per_row[2] < 0 < per_row[3]
        assert abs(per_row[0] + per_row[1]) < 1e-5
    for row, length in enumerate(LENGTHS):
        assert (found.batch.advantages[row, :length] == per_row[row]).all()
        assert (found.batch.advantages[row, length:] == 0).all()
    assert found.explained_variance is None
    swapped = compute_advantages(batch(), SCORES, settings, 0.0, torch.tensor([7, 4, 7, 4]))
    assert swapped.batch.advantages[0, 0].item() != per_row[0]


def test_reinforce_plus_plus_whitens_discounted_penalised_rewards() -> None:
    found = batch()
    settings = config(advantage__method="reinforce_plus_plus", advantage__gamma=0.8)
    judged = compute_advantages(found, SCORES, settings, 0.2, GROUPS)
    sums = [
        [sum(0.8 ** (k - t) * reward[k] for k in range(t, len(reward))) for t in range(len(reward))]
        for reward in rewards_by_hand(found, 0.2)
    ]
    every = np.concatenate([np.array(row) for row in sums])
    for row, values in enumerate(sums):
        expected = torch.tensor((np.array(values) - every.mean()) / every.std()).float()
        assert torch.allclose(judged.batch.advantages[row, : len(values)], expected, atol=1e-4)


def test_junk_in_padding_changes_nothing() -> None:
    for changes in ({}, {"score__whiten_rewards": True}, {"kl__estimator": "k3"}):
        first = compute_advantages(batch(float("nan")), SCORES, config(**changes), 0.2, GROUPS)
        second = compute_advantages(batch(1e9), SCORES, config(**changes), 0.2, GROUPS)
        assert torch.equal(first.batch.advantages, second.batch.advantages)
        assert torch.equal(first.batch.returns, second.batch.returns)
        assert first.explained_variance == second.explained_variance
