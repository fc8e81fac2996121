"""Does it fit, and what to change so that it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cluster.plan_roles import RolePlan
from rlhf.config import STAGES, build_config
from rlhf.config.base import Section
from rlhf.errors import ConfigError

Planner = Callable[[Section], list[RolePlan]]


@dataclass(frozen=True)
class Budget:
    """The machine: how many GPUs of how many usable bytes each, or one host whose bytes processes on CPUs share."""

    gpus: int
    usable_bytes: float
    one_host: bool = False

    def limit(self, role: RolePlan) -> float:
        """Bytes that one process of a role may take: its share of a GPU that it divides with others."""
        return self.usable_bytes * min(1.0, role.gpus_each or 1.0)

    def taken(self, roles: list[RolePlan]) -> float:
        """Bytes of all processes together."""
        return sum(role.processes * role.memory.total for role in roles)

    def overrun(self, roles: list[RolePlan]) -> float:
        """Bytes by which the worst role, or on one host all of them, are too large; 0 or less when everything fits."""
        if self.one_host:
            return self.taken(roles) - self.usable_bytes
        return max(role.memory.total - self.limit(role) for role in roles)


def host_memory() -> int:
    """Bytes of main memory that this process may use: the machine's, or its container's limit (cgroup v2)."""
    total = int(psutil.virtual_memory().total)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text("utf-8").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def gpus_needed(roles: list[RolePlan]) -> float:
    """GPUs of all processes together."""
    return sum(role.processes * role.gpus_each for role in roles)


def changed(config: Section, changes: dict[str, Any]) -> Section:
    """The config with dotted keys set.

    Raises:
        ConfigError: the changes break one of its rules.
    """
    stage = config.model_dump(mode="json")["stage"]
    tree = config.model_dump(mode="json", exclude_unset=True)  # what was not said stays unsaid: some rules ask
    for key, value in changes.items():
        node = tree
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return build_config(STAGES[stage], tree, source="plan")


def remedies(config: Section) -> Iterator[dict[str, Any]]:
    """Changes that save memory and keep what is learned the same, cheapest in time first; then those that do not."""
    tree = config.model_dump(mode="json")
    yield from _halvings(tree, "rollout", "microbatch_sequences")
    if not tree["model"].get("gradient_checkpointing"):
        yield {"model.gradient_checkpointing": True}
    for name in ("microbatch_sequences_per_gpu", "microbatch_tokens_per_gpu", "microbatch_pairs_per_gpu"):
        yield from _halvings(tree, "batch", name)
    engine, ranks = tree.get("engine"), tree["placement"]["num_ranks"]
    if tree.get("roles", {}).get("critic"):
        ranks = max(ranks, tree["placement"]["num_critic_ranks"])
    if engine is not None and "optim" in tree:
        if ranks > 1:
            yield from ({"engine.zero_stage": stage} for stage in (2, 3) if stage > engine["zero_stage"])
        if not engine["offload_optimizer"]:
            yield {"engine.offload_optimizer": True, **({} if engine["zero_stage"] else {"engine.zero_stage": 2})}
    if tree["model"]["quantization"] == "none" and tree.get("lora"):
        yield {"model.quantization": "nf4"}


def _halvings(tree: dict[str, Any], section: str, name: str) -> Iterator[dict[str, Any]]:
    value = tree.get(section, {}).get(name)
    while value and value > 1:
        value //= 2
        yield {f"{section}.{name}": value}


def advise(config: Section, planner: Planner, budget: Budget) -> dict[str, Any] | None:
    """The changes that make everything fit, none of them superfluous; None when none of the known ones suffices."""
    chosen: dict[str, Any] = {}
    if budget.overrun(planner(config)) <= 0:
        return chosen
    for change in remedies(config):
        before = _overrun(config, chosen, planner, budget)
        after = _overrun(config, {**chosen, **change}, planner, budget)
        if after is None or (before is not None and after >= before):
            continue
        chosen.update(change)
        if after <= 0:
            return _without_superfluous(config, chosen, planner, budget)
    return None


def _overrun(config: Section, changes: dict[str, Any], planner: Planner, budget: Budget) -> float | None:
    try:
        return budget.overrun(planner(changed(config, changes)))
    except ConfigError:
        return None


def _without_superfluous(config: Section, changes: dict[str, Any], planner: Planner, budget: Budget) -> dict[str, Any]:
    for key in reversed(list(changes)):
        fewer = {k: v for k, v in changes.items() if k != key}
        left = _overrun(config, fewer, planner, budget)
        if left is not None and left <= 0:
            changes = fewer
    return changes


def ranks_that_fit(config: Section, planner: Planner, budget: Budget) -> int | None:
    """The first doubling of the ranks, up to 256, at which everything fits under ZeRO-3; None without one.

    A critic with ranks of its own gets as many.
    """
    tree = config.model_dump(mode="json")
    if "optim" not in tree:
        return None
    ranks = tree["placement"]["num_ranks"]
    while (ranks := ranks * 2) <= 256:
        batch = {f"batch.{k}": 1 for k in tree["batch"] if k.startswith("microbatch_") and "_tokens_" not in k}
        size = {f"batch.{k}": max(v, ranks) for k, v in tree["batch"].items() if k.startswith("minibatch_")}
        changes = {"placement.num_ranks": ranks, "engine.zero_stage": 3, "model.gradient_checkpointing": True}
        if tree.get("roles", {}).get("critic"):
            changes["placement.num_critic_ranks"] = ranks
        left = _overrun(config, {**changes, **batch, **size, **_step_size(tree, ranks)}, planner, budget)
        if left is not None and left <= 0:
            return ranks
    return None


def _step_size(tree: dict[str, Any], ranks: int) -> dict[str, Any]:
    batch = tree["batch"]
    if "prompts_per_step" not in batch:
        return {}
    return {"batch.prompts_per_step": max(batch["prompts_per_step"], ranks * tree["placement"]["num_rollout_workers"])}
