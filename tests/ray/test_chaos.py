"""Processes killed and frozen at named states of a run: it ends as if nothing had happened."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.chaos_faults import Faults
from tests.support.chaos_runs import Outcome, chaos_config, differences, run
from tests.support.runtime import ActorPool

SILENT_SECONDS = 6.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for the runs that are compared: they must read the same prompt file."""
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture(scope="module")
def reference(actor_pool: ActorPool, tiny_base: Path, place: Path) -> Outcome:
    """The run that nothing happens to."""
    return run(chaos_config(tiny_base, place / "whole"), actor_pool)


def test_a_run_with_another_value_head_is_told_apart(reference: Outcome) -> None:
    (head,) = (name for name in reference.adapters["critic"] if "lora" not in name and name.endswith("weight"))
    critic = {**reference.adapters["critic"], head: reference.adapters["critic"][head] + 1e-7}
    other = replace(reference, adapters={**reference.adapters, "critic": critic})
    assert differences(reference, reference) == [] and differences(reference, other) == [f"critic {head}"]


def test_rollout_workers_killed_and_frozen_while_drawing(
    reference: Outcome, actor_pool: ActorPool, tiny_base: Path, place: Path
) -> None:
    """Three killed in mid-generation, one frozen there: the same samples, once each, and the same adapter."""
    faults = Faults(place / "rollouts")
    for version in (0, 1, 3):
        faults.arm(f"generate-{version}")
    faults.arm("generate-2", signal.SIGSTOP)
    config = chaos_config(tiny_base, place / "rollouts", **{"recovery.generate_timeout_seconds": SILENT_SECONDS})
    found = run(config, actor_pool, "rollout")
    assert differences(reference, found) == []
    assert sum(row["redispatched"] for row in found.rows) >= 4
    detected, resolved = found.kinds("fault_detected"), found.kinds("fault_resolved")
    assert len(detected) >= 4 and sorted(detected) == sorted(resolved), "each fault is on record once, and its end"
    died = [e for e in found.events if e["event"] == "fault_detected" and e["kind"] == "died"]
    frozen = [e for e in found.events if e["event"] == "fault_detected" and e["kind"] == "silent"]
    assert len(died) >= 3 and len(frozen) >= 1
    assert all(e["detect_seconds"] < SILENT_SECONDS + 5 for e in frozen), "noticed within the bound"
    for step, samples in found.samples.items():
        assert {sha for _, _, sha in samples} == {reference.samples[step][0][2]}, "drawn with the current adapter only"


def test_trainer_ranks_killed_in_learning_and_saving_and_one_frozen(
    reference: Outcome, actor_pool: ActorPool, tiny_base: Path, place: Path
) -> None:
    faults = Faults(place / "ranks")
    faults.arm("reduce-1-1")
    faults.arm("save-2-0")
    faults.arm("optimizer-3-1", signal.SIGSTOP)
    changes = {"recovery.max_restarts": 3, "placement.collective_timeout_seconds": 5.0}
    found = run(chaos_config(tiny_base, place / "ranks", **changes), actor_pool, "policy")
    assert differences(reference, found) == []
    assert found.summary["restarts"]["ranks"] == 3
    assert [e["step"] for e in found.events if e["event"] == "resumed"] == [1, 2, 3], "no step is lost or done twice"
    detected = [e for e in found.events if e["event"] == "fault_detected"]
    assert detected[-1]["kind"] == "collective", "a frozen rank is found by its peers"
    assert {e["kind"] for e in detected[:2]} <= {"died", "collective"}
    assert sorted(found.kinds("fault_detected")) == sorted(found.kinds("fault_resolved"))
    names = {path.name for path in (place / "ranks" / "checkpoints").iterdir()}
    assert names == {"step-00000002", "step-00000003", "step-00000004", "latest"} | (names & {"step-00000001"})
    stacks = list((place / "ranks" / "stalls").glob("*-policy.txt"))
    assert any("no answer; the process is gone or frozen" in path.read_text() for path in stacks)
