"""A run whose critic has ranks of its own goes on exactly: after a cut, and after the death of any of its ranks."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from rlhf.config import PpoConfig
from rlhf.errors import CheckpointError
from rlhf.stages import ppo
from tests.support.chaos_faults import Faults
from tests.support.chaos_runs import Outcome, chaos_config, differences, outcome_of, run, watched
from tests.support.runtime import ActorPool
from tests.support.tiny import build_model

BOUND_SECONDS = 5.0
NOTICE_SECONDS = 15.0
"""From the end of the bound to the record of the fault: the driver asks who died, and every rank where it stands."""


class Cut(BaseException):
    """Stands for a kill: nothing of the run's own code sees it."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for the runs that are compared: they must read the same prompt file."""
    return tmp_path_factory.mktemp("critic-resume")


def config_of(base: Path, run_dir: Path, **changes: Any) -> PpoConfig:
    """Two ranks of either kind; the critic on a wider base."""
    wide = run_dir.parent / "wide"
    if not wide.exists():
        build_model(wide, seed=5, hidden_size=96)
    settings = {"roles.critic": str(wide), "placement.num_critic_ranks": 2, "num_steps": 3, "batch.epochs": 1}
    return chaos_config(base, run_dir, **{**settings, **changes})


@pytest.fixture(scope="module")
def reference(actor_pool: ActorPool, tiny_base: Path, place: Path) -> Outcome:
    """Nothing happens to it."""
    return run(config_of(tiny_base, place / "whole"), actor_pool)


def cut_after_two_steps(config: PpoConfig, pool: ActorPool) -> None:
    def stop(done: int, total: int, **_: Any) -> None:
        if done == 2:
            raise Cut

    with watched(pool, ()), pytest.raises(Cut):
        ppo.run_ppo(config, progress=stop)


@pytest.fixture(scope="module")
def half_done(actor_pool: ActorPool, tiny_base: Path, place: Path) -> Path:
    """What a kill after two steps leaves."""
    config = config_of(tiny_base, place / "half")
    cut_after_two_steps(config, actor_pool)
    return Path(config.run_dir)


def test_a_run_cut_off_goes_on_exactly(
    reference: Outcome, half_done: Path, actor_pool: ActorPool, tiny_base: Path, place: Path
) -> None:
    config = config_of(tiny_base, place / "cut")
    shutil.copytree(half_done, config.run_dir)
    found = run(config, actor_pool)
    assert [e["step"] for e in found.events if e["event"] == "resumed"] == [2]
    assert differences(reference, found) == []


def test_the_critics_optimizer_is_part_of_it(
    reference: Outcome, half_done: Path, actor_pool: ActorPool, tiny_base: Path, place: Path
) -> None:
    """The comparison has power: with the critic's weights alone it fails."""
    config = config_of(tiny_base, place / "forgetful")
    shutil.copytree(half_done, config.run_dir)
    with watched(actor_pool, ()) as (_, samples):
        actor_pool.substitutes = {"rlhf.workers.critic:CriticWorker": "tests.support.faults:ForgetsCritic"}
        found = outcome_of(Path(config.run_dir), ppo.run_ppo(config), samples)
    assert any(what.startswith("critic ") for what in differences(reference, found))


def test_a_dead_or_frozen_critic_rank_brings_all_ranks_back_from_the_last_commit(
    reference: Outcome, actor_pool: ActorPool, tiny_base: Path, place: Path
) -> None:
    """One freezes before it learns, one dies there, one while a checkpoint is written."""
    faults = Faults(place / "killed")
    faults.arm("critic-1-1", signal.SIGSTOP)
    for state in ("critic-2-0", "critic-save-2-1"):
        faults.arm(state)
    changes = {"recovery.max_restarts": 3, "placement.collective_timeout_seconds": BOUND_SECONDS}
    found = run(config_of(tiny_base, place / "killed", **changes), actor_pool, "critic")
    assert differences(reference, found) == []
    assert found.summary["restarts"] == {"ranks": 3, "rollout_workers": 0, "scorer_workers": 0}
    assert [e["step"] for e in found.events if e["event"] == "resumed"] == [1, 2, 2], "the last commit each time"
    detected = [e for e in found.events if e["event"] == "fault_detected"]
    assert sorted(e["fault"] for e in detected[1:]) == ["critic-0", "critic-1"]
    assert (detected[0]["fault"], detected[0]["kind"]) == ("critic-0", "collective"), "the peer tells of the silence"
    assert detected[0]["time"] - faults.struck("critic-1-1") < BOUND_SECONDS + NOTICE_SECONDS, "within the bound"
    assert found.kinds("fault_detected") == found.kinds("fault_resolved")
    stacks = min((found.run_dir / "stalls").glob("*-critic.txt"))
    assert stacks.read_text().count("no answer; the process is gone or frozen") == 1


def test_a_checkpoint_of_other_critic_ranks_or_of_another_base_is_refused(
    actor_pool: ActorPool, tiny_base: Path, place: Path
) -> None:
    base = build_model(place / "to-change", seed=5, hidden_size=96)
    changes = {"roles.critic": str(base), "placement.num_critic_ranks": 1}
    cut_after_two_steps(config_of(tiny_base, place / "refused", **changes), actor_pool)

    def refused(reason: str, **more: Any) -> None:
        with watched(actor_pool, ()), pytest.raises(CheckpointError, match=reason):
            ppo.run_ppo(config_of(tiny_base, place / "refused", **{**changes, **more}))

    refused(r"set placement\.num_critic_ranks=1", **{"placement.num_critic_ranks": 2})
    refused(r"roles\.critic='.*to-change'", **{"roles.critic": str(place / "wide")})
    build_model(base, seed=6, hidden_size=96)
    refused("the weights of the critic's base have changed")
