"""Each role's schedule of learning rates runs over the updates that it takes."""

from __future__ import annotations

import pytest

from rlhf.config import PpoConfig
from rlhf.engine.engine import learning_rate_scale
from rlhf.models.roles import CRITIC, POLICY
from rlhf.workers.training_rank import role_scales

STEPS, WARMUP, PER_STEP = 10, 4, 6


def config_of(critic_warmup_steps: int) -> PpoConfig:
    return PpoConfig.model_validate(
        {
            "run_dir": "runs/x",
            "model": {"name": "base"},
            "prompts": ["prompts.jsonl"],
            "scores": [{"kind": "function", "path": "a.py:b"}],
            "batch": {"prompts_per_step": 8, "minibatch_sequences": 4, "microbatch_sequences_per_gpu": 4, "epochs": 3},
            "loss": {"critic_warmup_steps": critic_warmup_steps},
            "optim": {"learning_rate": 1e-3, "schedule": "linear", "warmup_fraction": 0.1},
            "num_steps": STEPS,
        }
    )


def test_a_policy_that_begins_late_has_its_whole_schedule_before_it() -> None:
    config = config_of(WARMUP)
    total, before = STEPS * PER_STEP, WARMUP * PER_STEP
    scales = [role_scales(config, update) for update in range(total)]
    assert [POLICY in found for found in scales] == [False] * before + [True] * (total - before)
    own = [learning_rate_scale(config.optim, update, total - before) for update in range(total - before)]
    assert [found[POLICY] for found in scales[before:]] == own and own[0] < own[4] == 1.0 > own[-1] > 0.0
    assert [f[CRITIC] for f in scales] == [learning_rate_scale(config.optim, u, total) for u in range(total)]


@pytest.mark.parametrize("update", [0, 7, 59])
def test_without_a_warm_up_both_have_the_same(update: int) -> None:
    found = role_scales(config_of(0), update)
    assert found[POLICY] == found[CRITIC]
