"""A critic on a base of its own, as the driver sees it: ranks that judge and learn while the policy's ranks do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rlhf.algos.minibatch import MinibatchPlan
from rlhf.config import PpoConfig
from rlhf.models.positions import check_positions, sampling_lengths
from rlhf.models.source import ModelSource, base_fingerprint
from rlhf.models.tokenizer import load_chat
from rlhf.stages.passes import in_step_order, judging_passes, learning_passes, require_packing
from rlhf.stages.resume import require_shared
from rlhf.workers.critic_start import CriticOrigin, open_critic
from rlhf.workers.group import WorkerGroup
from rlhf.workers.ppo_loss import mean_norms

STATE_DIR = "critic_state"
"""Of a checkpoint: what the critic's ranks go on from; their files have the names that the policy's have."""


@dataclass(frozen=True)
class AskedValues:
    """Values under way: who reads which rows, and one answer per rank."""

    plan: MinibatchPlan
    refs: list[Any]


class CriticRanks:
    """The critic's ranks; every call is started on them before the policy's ranks are called, and waited for after.

    Args:
        group: the ranks as started.
        run_dir: all of them must see it, because a checkpoint is one directory.
    """

    def __init__(self, group: WorkerGroup, config: PpoConfig, run_dir: Path) -> None:
        require_shared(group, run_dir)
        self._group, self._config = group, config
        self._num_ranks = config.placement.num_critic_ranks
        self.descriptions: list[dict[str, Any]] = group.call("describe")
        require_packing(config, self._packs)

    @property
    def actors(self) -> dict[int, Any]:
        """Actors by rank."""
        return dict(enumerate(self._group.actors))

    @property
    def num_trained(self) -> int:
        """Trained weights."""
        return int(self.descriptions[0]["trainable"]["critic"])

    def ask_for_values(self, batch: Any, lengths: Sequence[int]) -> AskedValues:
        """Starts judging a shared batch whose sequences have these lengths; hand the result to ``values``."""
        plan = judging_passes(self._config, lengths, self._num_ranks)
        return AskedValues(plan, self._group.submit("judge", [(batch, passes) for passes in plan.ranks]))

    def values(self, asked: AskedValues) -> Tensor:
        """State values before each response token, (batch, response) float32, in the order of the step."""
        return in_step_order(asked.plan, self._group.wait(asked.refs))["values"]

    def ask_to_learn(self, batch: Any, lengths: Sequence[int], step: int, first_update: int) -> list[Any]:
        """Starts the value updates of a step, over the minibatches of the policy's; hand the result to ``join``."""
        plans = learning_passes(self._config, lengths, step, self._packs, self._num_ranks)
        return self._group.submit("learn", [(batch, plans, first_update)] * self._num_ranks)

    def join(self, learned: dict[str, Any], asked: list[Any]) -> dict[str, Any]:
        """Waits for the critic, and gives the policy's figures with the critic's beside them."""
        return joined(learned, self._group.wait(asked)[0])

    def save_state(self, directory: Path, tag: str) -> list[str]:
        """Writes the ranks' parts of a checkpoint below ``directory``; returns the names of the trained tensors."""
        return list(self._group.call("save_state", str(directory / STATE_DIR), tag)[0])

    def load_state(self, directory: Path, tag: str, names: list[str]) -> None:
        """Takes over what ``save_state`` wrote."""
        self._group.call("load_state", str(directory / STATE_DIR), tag, names)

    def save(self, directory: Path) -> None:
        """Writes ``critic/``: the adapter with its value head."""
        self._group.call("save", str(directory))

    @property
    def _packs(self) -> bool:
        return bool(self.descriptions[0]["packs"])


def joined(policy: dict[str, Any], critic: dict[str, Any]) -> dict[str, Any]:
    """Figures of both groups under the names that they have where the roles share a base.

    ``grad_norm`` is that of both roles together, over the updates that both have made. ``critic_updates_skipped`` and
    ``speed.critic_*`` are the critic's own.
    """
    pairs = [(a, b) for a, b in zip(policy["norms"], critic["norms"], strict=False) if a is not None and b is not None]
    both = mean_norms([{**ours, **theirs} for ours, theirs in pairs])["grad_norm"]
    own = {key: value for key, value in critic.items() if key.startswith(("value_", "grad_norm."))}
    speed = {key.replace("learn", "critic"): value for key, value in critic["speed"].items()}
    return {
        **policy,
        **own,
        "grad_norm": both,
        "critic_updates_skipped": critic["updates_skipped"],
        "speed": {**policy["speed"], **speed},
    }


def critic_origin(config: PpoConfig, source: ModelSource) -> CriticOrigin | None:
    """Where a critic with a base of its own starts from; None where there is none.

    Args:
        source: the policy's.

    Raises:
        ConfigError: it cannot be this policy's critic, and why; before any worker starts.
    """
    if not config.critic_is_apart:
        return None
    origin = open_critic(config, *load_chat(source, config.model))
    check_positions(origin.source, origin.model, sampling_lengths(config.rollout, "rollout"))
    return origin


def critic_identity(config: PpoConfig, origin: CriticOrigin | None) -> dict[str, Any]:
    """What a checkpoint with a critic's ranks belongs to, beside what it belongs to without them."""
    if origin is None:
        return {}
    return {
        "num_critic_ranks": config.placement.num_critic_ranks,
        "critic_base_sha256": base_fingerprint(origin.source.base),
    }
