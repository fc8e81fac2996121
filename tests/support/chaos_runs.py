"""PPO runs under faults: real processes for the roles that are to die, borrowed ones for the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rlhf.config import PpoConfig
from rlhf.errors import ConfigError
from rlhf.models.adapters import read_adapter_file
from rlhf.stages import ppo, ppo_run
from rlhf.telemetry.events import read_events
from rlhf.workers.group import WorkerGroup
from tests.support.chaos_faults import Faults
from tests.support.ppo import PROMPTS, flat, tiny_config
from tests.support.runtime import ActorPool, gone

FRAGILE = {
    "rlhf.workers.rollout:RolloutWorker": "tests.support.fragile.rollout:FragileRollout",
    "rlhf.workers.policy:PolicyWorker": "tests.support.fragile.policy:FragilePolicy",
    "rlhf.workers.critic:CriticWorker": "tests.support.fragile.critic:FragileCritic",
    "rlhf.workers.scorer:ScorerWorker": "tests.support.fragile.scorer:FragileScorer",
}
NOT_COMPARED = ("time", "seconds.", "speed.", "sync.milliseconds", "redispatched")


@dataclass
class Processes:
    """Stands where ``WorkerGroup`` stands in the recipe: the roles of ``own`` get processes that may die."""

    pool: ActorPool | None
    own: tuple[str, ...]
    started: list[WorkerGroup] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)

    def launch(self, worker: str, role: str, **options: Any) -> WorkerGroup:
        if self.pool is not None and role not in self.own:
            return self.pool.launch(worker, role, **options)
        self.started.append(WorkerGroup.launch(FRAGILE[worker], role, **options))
        self.pids += self.started[-1].pids
        return self.started[-1]

    def close(self) -> None:
        """Gives back the places of processes that are gone."""
        for group in self.started:
            group.close()


@dataclass
class Outcome:
    """What a run left: summary, metrics, adapters, key and tokens of every sample used.

    Attributes:
        adapters: tensors by role, the critic's value head among them.
    """

    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    adapters: dict[str, Any]
    samples: dict[int, list[tuple[str, tuple[int, ...], str]]]
    events: list[dict[str, Any]]
    run_dir: Path

    def kinds(self, event: str) -> list[str]:
        """Which faults are on record under an event."""
        return [e["fault"] for e in self.events if e["event"] == event]


def chaos_config(base: Path, run_dir: Path, **changes: Any) -> PpoConfig:
    """Everything that has state is in use; one prompt file for all runs, because rows are known by their file."""
    prompts = run_dir.parent / "prompts.jsonl"
    prompts.parent.mkdir(parents=True, exist_ok=True)
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS), encoding="utf-8")
    settings: dict[str, Any] = {
        "prompts": str(prompts),
        "num_steps": 4,
        "checkpoint.every": 1,
        "optim.schedule": "linear",
        "kl.target": 0.001,
        "kl.horizon": 200.0,
        "placement.num_ranks": 2,
        "engine.zero_stage": 2,
        **changes,
    }
    return tiny_config(base, run_dir, **settings)


@contextmanager
def watched(pool: ActorPool | None, own: tuple[str, ...]) -> Iterator[tuple[Processes, dict[int, list[Any]]]]:
    """Replaces the groups of the recipe, and notes every sample that a step used."""
    processes, samples = Processes(pool, own), {}
    act = ppo.act

    def note(run: Any, step: int) -> Any:
        acted = act(run, step)
        samples[step] = [(r.key, r.response_ids, r.adapter_sha256) for r in acted.rollouts]
        return acted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo_run, "WorkerGroup", processes)
        patch.setattr(ppo_run, "reserve_places", lambda session: None)
        patch.setattr(ppo, "act", note)
        if pool is not None:
            pool.substitutes, pool.answers = {}, []
        try:
            yield processes, samples
        finally:
            processes.close()


def run(config: PpoConfig, pool: ActorPool | None, *own: str) -> Outcome:
    """Runs the recipe to its end.

    Raises:
        ConfigError: a fault was armed and met nobody, or a victim lives on.
    """
    run_dir = Path(config.run_dir)
    with watched(pool, own) as (processes, samples):
        pids = processes.pids
        summary = ppo.run_ppo(config)
    require_victims(run_dir)
    if not gone(pids):
        raise ConfigError(f"processes {pids} outlive their run")
    return outcome_of(run_dir, summary, samples)


def require_victims(run_dir: Path) -> None:
    """Every armed fault has struck, and everyone it struck is dead."""
    faults = Faults(run_dir)
    if left := faults.left():
        raise ConfigError(f"faults that met nobody: {left}")
    if not gone(list(faults.fired().values())):
        raise ConfigError(f"a victim lives: {faults.fired()}")


def outcome_of(run_dir: Path, summary: dict[str, Any], samples: dict[int, list[Any]]) -> Outcome:
    """Reads what a finished run wrote."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [flat(json.loads(line)) for line in lines]
    tensors = {}
    for role in ("adapter", "critic"):
        adapter, rest = read_adapter_file(run_dir / role)
        tensors[role] = adapter | rest
    return Outcome(summary, rows, tensors, samples, read_events(run_dir), run_dir)


def differences(one: Outcome, two: Outcome) -> list[str]:
    """Where two runs differ in anything but what a clock wrote; empty for the same run."""
    found = []
    if [row["step"] for row in two.rows] != [row["step"] for row in one.rows]:
        found.append(f"steps {[row['step'] for row in two.rows]}")
    for ours, theirs in zip(one.rows, two.rows, strict=False):
        kept = [{k: repr(v) for k, v in row.items() if not k.startswith(NOT_COMPARED)} for row in (ours, theirs)]
        found += [f"step {ours['step']} {k}" for k in kept[0] | kept[1] if kept[0].get(k) != kept[1].get(k)]
    if one.summary["adapter_sha256"] != two.summary["adapter_sha256"]:
        found.append("adapter_sha256")
    for role, ours in one.adapters.items():
        theirs = two.adapters[role]
        if ours.keys() != theirs.keys():
            found.append(f"{role} has other tensors")
        found += [f"{role} {k}" for k in ours.keys() & theirs.keys() if not torch.equal(ours[k], theirs[k])]
    for step, samples in two.samples.items():
        keys = [key for key, _, _ in samples]
        if len(set(keys)) != len(keys):
            found.append(f"step {step} uses a sample twice")
        if step in one.samples and samples != one.samples[step]:
            found.append(f"step {step} has other samples")
    return found


def write_config(config: PpoConfig, path: Path) -> Path:
    """A config file for the command line."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    return path


def scored_config(base: Path, run_dir: Path, foreign: Path, num_scorers: int, **changes: Any) -> PpoConfig:
    """Scored by a reward run on a base of its own: 32 responses a step, in two pieces."""
    settings: dict[str, Any] = {
        "scores": [{"kind": "reward_model", "run": str(foreign)}],
        "batch.prompts_per_step": 8,
        "batch.epochs": 1,
        "num_steps": 3,
        "placement.num_scorer_workers": num_scorers,
        **changes,
    }
    return chaos_config(base, run_dir, **settings)
