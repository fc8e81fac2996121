"""Figures of a critic with ranks of its own stand where those of a shared critic stand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rlhf.stages.critic_ranks import joined


def figures(role: str, norms: list[float | None], **more: Any) -> dict[str, Any]:
    return {
        "norms": [None if norm is None else {role: norm} for norm in norms],
        f"grad_norm.{role}": 7.0,
        "grad_norm": 7.0,
        "updates": len(norms),
        "updates_skipped": norms.count(None),
        "speed": {"learn_tflops": 1.0 if role == "policy" else 2.0},
        **more,
    }


def test_figures_are_joined() -> None:
    policy = figures("policy", [3.0, None, 5.0, 8.0], policy_loss=0.1, ratio_first=0.5)
    critic = figures("critic", [4.0, 1.0, 12.0, None], value_loss=0.2, value_clip_fraction=0.3, ratio_first=0.0)
    found = joined(policy, critic)
    assert found["grad_norm"] == pytest.approx((math.hypot(3, 4) + math.hypot(5, 12)) / 2), "of updates that both made"
    assert (found["updates_skipped"], found["critic_updates_skipped"], found["updates"]) == (1, 1, 4)
    assert (found["policy_loss"], found["value_loss"], found["value_clip_fraction"]) == (0.1, 0.2, 0.3)
    assert found["ratio_first"] == 0.5 and found["grad_norm.critic"] == found["grad_norm.policy"] == 7.0
    assert found["speed"] == {"learn_tflops": 1.0, "critic_tflops": 2.0}


def test_a_policy_that_stops_early_is_compared_over_its_updates() -> None:
    found = joined(figures("policy", [3.0]), figures("critic", [4.0, 100.0]))
    assert found["grad_norm"] == pytest.approx(5.0) and found["updates"] == 1
