"""The real workers, with named states in which a fault may strike them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState

from rlhf.config import PpoConfig, SamplingConfig
from rlhf.engine.engine import collective_timeouts
from rlhf.errors import WorkerError
from rlhf.rollout.protocol import PromptTask, Rollout
from rlhf.weights.snapshot import Snapshot
from rlhf.workers.context import WorkerContext
from rlhf.workers.critic import CriticWorker
from rlhf.workers.policy import PolicyWorker
from rlhf.workers.rollout import RolloutWorker
from rlhf.workers.scorer import ScorerWorker
from rlhf.workers.sft import SftStageTrainer, SftWorker
from tests.support.chaos_faults import Faults

TOKENS_BEFORE_A_FAULT = 3
PATIENT_SECONDS = 300.0


class FragileRollout(RolloutWorker):
    """States: ``generate-VERSION`` after some tokens are drawn, ``install-VERSION`` before an adapter is taken."""

    def __init__(self, context: WorkerContext, *args: Any, **kwargs: Any) -> None:
        self.faults = Faults(Path(context.run_dir))
        super().__init__(context, *args, **kwargs)

    def install(self, snapshot: Snapshot) -> tuple[str, float]:
        self.faults.reach(f"install-{snapshot.version}")
        return super().install(snapshot)

    def generate(self, tasks: list[PromptTask], sampling: SamplingConfig, version: int) -> list[Rollout]:
        passes = 0

        def count(*_: Any) -> None:
            nonlocal passes
            passes += 1
            if passes == TOKENS_BEFORE_A_FAULT:
                self.faults.reach(f"generate-{version}")

        handle = self.generator._causal.register_forward_pre_hook(count)
        try:
            return super().generate(tasks, sampling, version)
        finally:
            handle.remove()


class FragilePolicy(PolicyWorker):
    """States ``NAME-STEP-RANK``: forward, reduce, optimizer, save; each once per step or more often.

    The collective timeout of the config holds from the first step on: start-up is given more time, because on a busy
    machine ranks start seconds apart.
    """

    def __init__(self, context: WorkerContext, config: PpoConfig) -> None:
        self.faults, self._step = Faults(Path(context.run_dir)), -1
        wanted = config.placement.collective_timeout_seconds
        patient = config.placement.model_copy(update={"collective_timeout_seconds": max(wanted, PATIENT_SECONDS)})
        super().__init__(context, config.model_copy(update={"placement": patient}))
        given = timedelta(seconds=patient.collective_timeout_seconds)
        if set(collective_timeouts()) != {given}:
            raise WorkerError("policy", context.rank, f"groups wait {collective_timeouts()}, the config says {given}")
        self._bound = timedelta(seconds=wanted)
        optimizer, reduce = self.engine._engine.optimizer, torch.distributed.all_reduce
        take_step = optimizer.step

        def step_or_fault(*args: Any, **kwargs: Any) -> Any:
            self._reach("optimizer")
            return take_step(*args, **kwargs)

        def reduce_or_fault(*args: Any, **kwargs: Any) -> Any:
            self._reach("reduce")
            return reduce(*args, **kwargs)

        optimizer.step = step_or_fault
        torch.distributed.all_reduce = reduce_or_fault

    def learn(self, batch: Any, epochs: list[Any], first_update: int, *args: Any) -> dict[str, float]:
        for group in torch.distributed.distributed_c10d._world.pg_map:
            torch.distributed.distributed_c10d._set_pg_timeout(self._bound, group)
        self._step = first_update // (self.config.batch.epochs * self.config.minibatches)
        return super().learn(batch, epochs, first_update, *args)

    def _minibatch(self, *args: Any, **kwargs: Any) -> Any:
        self._reach("forward")
        return super()._minibatch(*args, **kwargs)

    def save_state(self, directory: str, tag: str) -> list[str]:
        found = super().save_state(directory, tag)
        self._reach("save")
        return found

    def _reach(self, name: str) -> None:
        if self._step >= 0:
            self.faults.reach(f"{name}-{self._step}-{self.context.rank}")


class FragileCritic(CriticWorker):
    """States ``critic-STEP-RANK``, before the first micro-batch of a step, and ``critic-save-STEP-RANK``."""

    def __init__(self, context: WorkerContext, config: PpoConfig) -> None:
        self.faults, self._step = Faults(Path(context.run_dir)), -1
        super().__init__(context, config)

    def learn(self, batch: Any, epochs: list[Any], first_update: int) -> dict[str, float]:
        self._step = first_update // (self.config.batch.epochs * self.config.minibatches)
        self.faults.reach(f"critic-{self._step}-{self.context.rank}")
        return super().learn(batch, epochs, first_update)

    def save_state(self, directory: str, tag: str) -> list[str]:
        found = super().save_state(directory, tag)
        self.faults.reach(f"critic-save-{self._step}-{self.context.rank}")
        return found


class FragileScorer(ScorerWorker):
    """States: ``build``, and ``score-CALL-RANK`` where calls are counted in each process."""

    def __init__(self, context: WorkerContext, *args: Any) -> None:
        self.faults, self._calls = Faults(Path(context.run_dir)), 0
        self.faults.reach("build")
        super().__init__(context, *args)

    def score_pieces(self, *args: Any) -> list[Any]:
        self.faults.reach(f"score-{self._calls}-{self.context.rank}")
        self._calls += 1
        return super().score_pieces(*args)


class FragileSft(SftWorker):
    """States ``step-STEP-RANK``: STEP optimizer steps are done and committed, the next is about to begin."""

    def _build_trainer(self, rows: list[dict[str, Any]], evaluation: list[dict[str, Any]]) -> SftStageTrainer:
        trainer = super()._build_trainer(rows, evaluation)
        trainer.add_callback(_ReachSteps(Faults(Path(self.context.run_dir)), self.context.rank))
        return trainer


class _ReachSteps(TrainerCallback):
    def __init__(self, faults: Faults, rank: int) -> None:
        self._faults, self._rank = faults, rank

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self._faults.reach(f"step-{state.global_step}-{self._rank}")
