"""Rows without a score leave the step as if they had never been drawn; numbers that are none stop it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.config import PpoConfig, build_config
from rlhf.errors import DataError, NumericsError
from rlhf.rollout.experience import Experience, collect
from rlhf.rollout.protocol import Rollout
from rlhf.stages.judging import compute_advantages, row_means

LENGTHS = (3, 1, 5, 2, 4, 2)
GROUPS = torch.tensor([7, 7, 7, 4, 4, 4])
SCORES = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.25, -1.0])
METHODS = ("gae", "grpo", "rloo", "reinforce_plus_plus")


def config(method: str) -> PpoConfig:
    tree: dict[str, Any] = {
        "run_dir": "x",
        "model": {"name": "m"},
        "prompts": "p",
        "scores": [{"kind": "function", "path": "a:b"}],
        "advantage": {"method": method},
        "kl": {"mode": "loss", "estimator": "k2"} if method in ("grpo", "rloo") else {},
        "batch": {"prompts_per_step": 4, "responses_per_prompt": 4, "minibatch_sequences": 16},
    }
    return build_config(PpoConfig, tree, source="test")


def batch(lengths: tuple[int, ...] = LENGTHS) -> Experience:
    rollouts = [Rollout(str(i), (5, 6), (9,) * n, (-1.0,) * n, True, 0, "x") for i, n in enumerate(lengths)]
    plain = collect(rollouts, 0)
    generator = torch.Generator().manual_seed(0)

    def tensor() -> Tensor:
        return torch.randn(len(lengths), max(lengths), generator=generator)

    return plain.with_judgement(old_logprobs=tensor(), ref_logprobs=tensor(), values=tensor())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dropped", [(2,), (0, 5), (1, 3, 4)])
def test_the_others_learn_what_they_would_have_learnt_alone(method: str, dropped: tuple[int, ...]) -> None:
    scored = torch.ones(6, dtype=torch.bool)
    scored[list(dropped)] = False
    kept = [row for row in range(6) if scored[row]]
    if method == "rloo":  # the rest of a group of one has nobody to be compared with
        sizes = {int(g): int((GROUPS[kept] == g).sum()) for g in GROUPS}
        kept = [row for row in kept if sizes[int(GROUPS[row])] > 1]
    scores = SCORES.masked_fill(~scored, math.nan)
    found = compute_advantages(batch(), scores, config(method), 0.1, GROUPS, scored).batch
    alone = compute_advantages(batch().select(kept), SCORES[kept], config(method), 0.1, GROUPS[kept]).batch
    width = alone.advantages.shape[1]
    torch.testing.assert_close(found.advantages[kept][:, :width], alone.advantages, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.returns[kept][:, :width], alone.returns, atol=1e-6, rtol=1e-6)
    gone = [row for row in range(6) if row not in kept]
    assert not found.response_mask[gone].any() and (found.advantages[gone] == 0).all()
    assert torch.equal(found.response_mask[kept], batch().response_mask[kept])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dropped", [(2,), (1, 3, 4)])
def test_a_row_that_has_left_is_in_no_mean(method: str, dropped: tuple[int, ...]) -> None:
    scored = torch.ones(6, dtype=torch.bool)
    scored[list(dropped)] = False
    kept = [row for row in range(6) if scored[row] and not (method == "rloo" and dropped == (1, 3, 4) and row == 5)]
    drawn = batch().with_judgement(finished=torch.tensor([True, False, False, True, True, False]))
    kl = torch.tensor([0.5, -3.0, 9.0, -0.25, 1.0, 2.0])
    judged = compute_advantages(drawn, SCORES.masked_fill(~scored, math.nan), config(method), 0.1, GROUPS, scored)
    found = row_means(judged, kl)
    alone = compute_advantages(drawn.select(kept), SCORES[kept], config(method), 0.1, GROUPS[kept])
    assert found == pytest.approx(
        {
            "reward_mean": float(alone.rewards.sum(dim=1).mean()),
            "kl": float(kl[kept].mean()),
            "kl_max": float(kl[kept].max()),
            "response_tokens_mean": sum(LENGTHS[row] for row in kept) / len(kept),
            "eos_rate": float(drawn.finished[kept].float().mean()),
        }
    )
    assert judged.rows.nonzero().flatten().tolist() == kept


def test_rloo_without_any_two_to_compare_stops() -> None:
    scored = torch.tensor([True, False, False, False, True, False])
    with pytest.raises(DataError, match="no two responses to one prompt have a score"):
        compute_advantages(batch(), SCORES, config("rloo"), 0.1, GROUPS, scored)


@pytest.mark.parametrize("method", METHODS)
def test_no_row_dropped_changes_nothing(method: str) -> None:
    every = torch.ones(6, dtype=torch.bool)
    one = compute_advantages(batch(), SCORES, config(method), 0.1, GROUPS, every)
    other = compute_advantages(batch(), SCORES, config(method), 0.1, GROUPS)
    assert torch.equal(one.batch.advantages, other.batch.advantages)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["old_logprobs", "ref_logprobs", "values"])
def test_numbers_that_are_none_are_refused_by_row(name: str, bad: float) -> None:
    found = batch()
    planted = getattr(found, name).clone()
    planted[4, 1] = bad
    with pytest.raises(NumericsError, match=r"not finite in 1 of 6 rows \(4\)"):
        compute_advantages(found.with_judgement(**{name: planted}), SCORES, config("gae"), 0.1, GROUPS)
    planted = getattr(found, name).clone()
    planted[1, 3] = bad  # padding
    done = compute_advantages(found.with_judgement(**{name: planted}), SCORES, config("gae"), 0.1, GROUPS)
    assert torch.isfinite(done.batch.advantages).all() and torch.isfinite(done.batch.returns).all()


@pytest.mark.parametrize("method", METHODS)
def test_scores_that_are_none_are_refused(method: str) -> None:
    with pytest.raises(NumericsError, match=r"the score is not finite in 1 of 6 rows \(0\)"):
        compute_advantages(batch(), SCORES.index_fill(0, torch.tensor([0]), math.nan), config(method), 0.1, GROUPS)


@pytest.mark.parametrize("method", METHODS)
def test_equal_scores_and_responses_of_one_token_stay_finite(method: str) -> None:
    for lengths in (LENGTHS, (1,) * 6):
        found = compute_advantages(batch(lengths), torch.full((6,), 2.0), config(method), 0.1, GROUPS).batch
        assert torch.isfinite(found.advantages).all() and torch.isfinite(found.returns).all()
