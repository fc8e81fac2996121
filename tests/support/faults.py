"""Workers with one fault each: what must stop a run, with its reason, or be survived and counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Parameter

import rlhf.engine.engine as engine_module
import rlhf.models.output as output_module
import rlhf.workers.critic as critic_module
import rlhf.workers.policy as policy_module
from rlhf.config import PpoConfig, SamplingConfig
from rlhf.engine.zero import deepspeed_config
from rlhf.rollout.protocol import PromptTask, Rollout
from rlhf.weights.snapshot import Snapshot
from rlhf.workers.context import WorkerContext
from rlhf.workers.critic import CriticWorker
from rlhf.workers.policy import PolicyWorker
from rlhf.workers.rollout import RolloutWorker
from rlhf.workers.training_rank import TrainingRank

NAN_UPDATES = "nan_updates.json"


class PartitioningPolicy(PolicyWorker):
    """No fault: ZeRO-3 that cuts even the smallest tensors, which by default stay whole on every rank."""

    def __init__(self, context: WorkerContext, config: PpoConfig) -> None:
        def with_threshold(*args: Any, **kwargs: Any) -> dict[str, Any]:
            found = deepspeed_config(*args, **kwargs)
            found["zero_optimization"]["stage3_param_persistence_threshold"] = 0
            return found

        engine_module.deepspeed_config = with_threshold
        try:
            super().__init__(context, config)
        finally:
            engine_module.deepspeed_config = deepspeed_config


class ChunkingPolicy(PartitioningPolicy):
    """No fault: logits are made a few rows at a time, of weights that ZeRO-3 has cut."""

    def judge(self, *args: Any, **kwargs: Any) -> Any:
        with few_logits() as calls:
            found = super().judge(*args, **kwargs)
        require(calls)
        return found

    def learn(self, *args: Any, **kwargs: Any) -> Any:
        with few_logits() as calls:
            found = super().learn(*args, **kwargs)
        require(calls)
        return found


def require(calls: list[int]) -> None:
    """The test has met its scenario."""
    if not calls:
        raise ValueError("nothing was read in chunks")


@contextmanager
def few_logits() -> Iterator[list[int]]:
    """At most three rows of the tiny vocabulary at once; tells the sizes of what was read in chunks."""
    limits = output_module.LOGITS_ELEMENTS
    plain, chunked, calls = limits["cpu"], output_module.chunked_logprobs_and_entropy, []

    def counted(rows: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(rows))
        return chunked(rows, *args, **kwargs)

    limits["cpu"], output_module.chunked_logprobs_and_entropy = 1000, counted
    try:
        yield calls
    finally:
        limits["cpu"], output_module.chunked_logprobs_and_entropy = plain, chunked


class FrozenPublisher(PolicyWorker):
    """Publishes the reference adapter instead of the trained one."""

    def snapshot(self, version: int, part: int = 0) -> Snapshot | None:
        found = super().snapshot(version, part)
        if found is None:
            return None
        self._first = getattr(self, "_first", found)
        return Snapshot(version, self._first.entries, self._first.buffer, self._first.sha256)


class EmptyPublisher(PolicyWorker):
    """Looks for its adapter under a name that does not exist, as after a change of prefix in a library."""

    def snapshot(self, version: int, part: int = 0) -> Snapshot | None:
        named = [(f"renamed.{name}", p) for name, p in self.roles.named_trained()]
        self.roles.named_trained = lambda: named  # type: ignore[method-assign]
        return super().snapshot(version, part)


class DeafRollout(RolloutWorker):
    """One worker answers that it took the adapter, and keeps the one it had."""

    def install(self, snapshot: Snapshot) -> tuple[str, float]:
        if snapshot.version and self.context.rank == 1:
            self.generator._version = snapshot.version
            return snapshot.sha256, 0.0
        return super().install(snapshot)


class OtherHeadRollout(RolloutWorker):
    """Draws with an output layer that is a tenth larger than the trainer's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        head = self.generator._causal.get_output_embeddings()
        head.weight = Parameter(1.1 * head.weight.detach(), requires_grad=False)


class LateRollout(RolloutWorker):
    """One worker reports the hash that it holds after having missed an adapter."""

    def install(self, snapshot: Snapshot) -> tuple[str, float]:
        if snapshot.version and self.context.rank == 1:
            return self._held, 0.0
        self._held, milliseconds = super().install(snapshot)
        return self._held, milliseconds


class StaleRollout(RolloutWorker):
    """One worker draws with the version before, and says so in its rollouts."""

    def generate(self, tasks: list[PromptTask], sampling: SamplingConfig, version: int) -> list[Rollout]:
        if version and self.context.rank == 1:
            self.generator._version = version - 1
            return self.generator.generate(tasks, sampling)
        return super().generate(tasks, sampling, version)


class ShiftedRollout(RolloutWorker):
    """An engine that draws from another distribution than it says: every log-prob is 0.7 nats too high."""

    def generate(self, tasks: list[PromptTask], sampling: SamplingConfig, version: int) -> list[Rollout]:
        drawn = super().generate(tasks, sampling, version)
        return [replace(one, logprobs=tuple(value + 0.7 for value in one.logprobs)) for one in drawn]


class SlightlyShiftedRollout(RolloutWorker):
    """Its log-probs are 0.1 nats too high: below the default limit."""

    def generate(self, tasks: list[PromptTask], sampling: SamplingConfig, version: int) -> list[Rollout]:
        drawn = super().generate(tasks, sampling, version)
        return [replace(one, logprobs=tuple(value + 0.1 for value in one.logprobs)) for one in drawn]


class LaterShiftedRollout(RolloutWorker):
    """As ``ShiftedRollout``, from the second step on."""

    def generate(self, tasks: list[PromptTask], sampling: SamplingConfig, version: int) -> list[Rollout]:
        drawn = super().generate(tasks, sampling, version)
        return [replace(one, logprobs=tuple(value + 0.7 * version for value in one.logprobs)) for one in drawn]


class ForgetfulRollout(RolloutWorker):
    """One worker was replaced by a fresh one without its adapter."""

    def generate(self, tasks: list[PromptTask], sampling: SamplingConfig, version: int) -> list[Rollout]:
        if version and self.context.rank == 1:
            self.generator._version = -1
        return super().generate(tasks, sampling, version)


class OffPolicy(PolicyWorker):
    """Old log-probs that are not those of the policy that learns."""

    def judge(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        found = super().judge(*args, **kwargs)
        found["old_logprobs"] = found["old_logprobs"] - 0.01
        found["ref_logprobs"] = found["ref_logprobs"] - 0.01
        return found


class MovedReference(PolicyWorker):
    """A reference that is not the start policy."""

    def judge(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        found = super().judge(*args, **kwargs)
        found["ref_logprobs"] = found["ref_logprobs"] - 0.01
        return found


class WithoutMoments(TrainingRank):
    """Resumes with the weights alone; the moments start at zero."""

    def load_state(self, directory: str, tag: str, names: list[str]) -> None:
        engine = self.engine._engine
        load = engine.load_checkpoint
        engine.load_checkpoint = lambda *a, **k: load(*a, **{**k, "load_optimizer_states": False})
        super().load_state(directory, tag, names)


class ForgetsOptimizer(WithoutMoments, PolicyWorker):
    """The policy's ranks."""


class NanPolicy(PolicyWorker):
    """The last rank's loss is not a number in the updates that a file in the run directory lists."""

    def learn(self, batch: Any, epochs: list[Any], first_update: int, *args: Any) -> dict[str, float]:
        listed = Path(self.config.run_dir, NAN_UPDATES)
        self._nan = set(json.loads(listed.read_text())) if listed.is_file() else set()
        self._update = first_update
        return super().learn(batch, epochs, first_update, *args)

    def _minibatch(self, *args: Any, **kwargs: Any) -> None:
        spoiled = self._update in self._nan and self.context.rank == self.context.num_ranks - 1
        self._update += 1
        sound = policy_module.ppo_loss

        def nan_loss(*inputs: Any) -> Any:
            loss, policy = sound(*inputs)
            return loss * float("nan"), policy

        policy_module.ppo_loss = nan_loss if spoiled else sound
        try:
            super()._minibatch(*args, **kwargs)
        finally:
            policy_module.ppo_loss = sound


class NanCritic(CriticWorker):
    """The last rank's value loss is not a number in the updates that a file in the run directory lists."""

    def learn(self, batch: Any, epochs: list[Any], first_update: int) -> dict[str, float]:
        self._nan = set(json.loads(Path(self.config.run_dir, NAN_UPDATES).read_text()))
        self._update = first_update
        return super().learn(batch, epochs, first_update)

    def _minibatch(self, *args: Any, **kwargs: Any) -> None:
        spoiled = self._update in self._nan and self.context.rank == self.context.num_ranks - 1
        self._update += 1
        sound = critic_module.value_term
        critic_module.value_term = (lambda *inputs: sound(*inputs) * float("nan")) if spoiled else sound
        try:
            super()._minibatch(*args, **kwargs)
        finally:
            critic_module.value_term = sound


class ForgetsCritic(WithoutMoments, CriticWorker):
    """The critic's ranks."""
