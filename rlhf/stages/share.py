"""Publishing the policy and proving that every rollout worker took it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from rlhf.config import PpoConfig
from rlhf.errors import WeightSyncError
from rlhf.models.loading import build_empty, torch_dtype
from rlhf.models.source import ModelSource
from rlhf.stages.agreement import Bounds, refuse_apart
from rlhf.weights.parts import sha_of
from rlhf.weights.snapshot import Header
from rlhf.workers.between_hosts import BetweenHosts
from rlhf.workers.fleet import RolloutFleet
from rlhf.workers.group import WorkerGroup
from rlhf.workers.runtime import STORE_BYTES
from rlhf.workers.shipped import Shipped

KEPT_HASHES = 16


@dataclass
class AdapterChannel:
    """Carries the policy's versions, adapters or whole weights, from the trainer to the rollout workers.

    Attributes:
        num_parts: messages that a version takes.
        between_hosts: brings them to other hosts; None: those ask the object store.
        bounds: of the |log-prob differences| of the canary tokens between trainer and rollout workers.
        canary: (prompt tokens, scored tokens), fixed for the run.
        version / sha256: what all rollout workers hold now; version -1 before the first publish.
        hashes: sha256 by version, of the versions that rollouts on their way may still carry.
    """

    policy: WorkerGroup
    rollout: RolloutFleet
    bounds: Bounds
    temperature: float
    canary: tuple[list[int], list[int]]
    num_parts: int = 1
    between_hosts: BetweenHosts | None = None
    version: int = -1
    sha256: str = ""
    hashes: dict[int, str] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)

    def publish(self, *, must_differ: bool) -> dict[str, float]:
        """Gathers the trained tensors, ships them once, and compares log-probs afterwards.

        Args:
            must_differ: an optimizer step with a non-zero gradient lies behind; equal bytes then mean that
                nothing was learned, or the wrong tensors were gathered.

        Returns:
            ``{max_logprob_diff, mean_logprob_diff, bytes, broadcast_hosts, milliseconds}``: differences of the rank
            and worker that are furthest apart; hosts that the bytes were brought to
            (others ask the store); the time is from gathering to the last worker's answer.

        Raises:
            WeightSyncError: unchanged, stale, mixed or disagreeing adapters.
        """
        started = time.perf_counter()
        version, ranks = self.version + 1, len(self.policy.actors)
        asked = [
            [self.policy.submit_apart(rank, "snapshot", (version, part)) for rank in range(ranks)]
            for part in range(self.num_parts)
        ]
        buffers = [of_ranks[0][1] for of_ranks in asked]
        if self.between_hosts is not None:
            self.between_hosts.send(self.policy.nodes[0], self.rollout.hosts, buffers)
        headers: list[Header] = [self.policy.wait([done for done, _ in of_ranks])[0] for of_ranks in asked]
        sha256 = sha_of(headers)
        if must_differ and sha256 == self.sha256:
            raise WeightSyncError(
                f"adapter version {version} has the bytes of version {self.version} after a real optimizer "
                "step: the trained tensors are not the published ones"
            )
        nearer = self.between_hosts.receive(headers) if self.between_hosts is not None else {}
        told = self.policy.submit("canary", [self.canary] * ranks)  # while the workers write and hash
        self.rollout.install(list(map(Shipped, headers, buffers)), nearer)
        milliseconds = (time.perf_counter() - started) * 1e3
        most, mean = self._canary_differences(self.policy.wait(told))
        refuse_apart(self.bounds, version, most, mean)
        self.version, self.sha256 = version, sha256
        self.hashes[self.version] = self.sha256
        self.hashes.pop(self.version - KEPT_HASHES, None)
        result = {
            "max_logprob_diff": most,
            "mean_logprob_diff": mean,
            "bytes": float(sum(header.num_bytes for header in headers)),
            "broadcast_hosts": float(len(nearer)),
            "milliseconds": milliseconds,
        }
        self.history.append(result)
        return result

    def check(self, version: int, versions: set[int], hashes: set[str]) -> None:
        """Refuses rollouts that were not all drawn by the version that was asked for."""
        if versions != {version} or hashes != {self.hashes[version]}:
            raise WeightSyncError(
                f"rollouts carry adapter versions {sorted(versions)}, the current one is {version}: "
                "a worker is stale or was replaced without its adapter"
            )

    def resume(self, version: int, sha256: str) -> None:
        """Publishes a checkpoint's policy under its old version number.

        Raises:
            WeightSyncError: the trainer's tensors are not those whose hash the checkpoint names.
        """
        self.version = version - 1
        self.publish(must_differ=False)
        if self.sha256 != sha256:
            raise WeightSyncError(
                f"the checkpoint's policy has sha256 {sha256[:12]}, the trainer loaded {self.sha256[:12]}: "
                "the trained tensors were not restored"
            )

    def _canary_differences(self, trained: list[list[float]]) -> tuple[float, float]:
        """The largest, and the largest mean of a rank and a worker: one of many that is wrong must show."""
        drawn = list(self.rollout.call("canary", *self.canary, self.temperature).values())
        apart = (torch.tensor(trained)[:, None] - torch.tensor(drawn)).abs()  # (ranks, workers, tokens)
        return float(apart.max()), float(apart.mean(dim=-1).max())


def store_bytes(config: PpoConfig, source: ModelSource) -> int:
    """Room for two versions of a whole policy: the rollout workers read one in place while the next arrives."""
    if config.policy_weights == "adapter":
        return STORE_BYTES
    count = sum(parameter.numel() for parameter in build_empty(source, config.model).parameters())
    return STORE_BYTES + 2 * count * torch_dtype(config.model).itemsize
