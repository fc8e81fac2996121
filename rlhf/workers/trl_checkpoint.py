"""Checkpoints of the SFT, reward and DPO trainers: the same commit as PPO's, made by the ranks, resumed exactly."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from rlhf.engine.checkpoint.rng import capture_rng, restore_rng
from rlhf.engine.checkpoint.store import CheckpointStore, full_disk, rank_file, write_state
from rlhf.engine.engine import SAFE_CLASSES
from rlhf.errors import NumericsError
from rlhf.workers.context import WorkerContext
from rlhf.workers.large_files import large_files

TRAINER_STATE = "trainer_state.json"
WATCH_FILE = "watch.json"
BEST_FILE = "best.safetensors"


@dataclass(frozen=True)
class CheckpointPlan:
    """What the driver tells the ranks about checkpoints.

    Attributes:
        identity: what a commit belongs to; see ``rlhf.stages.resume``.
        wait_seconds: how long ranks wait for one another while files are written and hashed.
        resume_from: a verified commit to go on from, or None.
    """

    directory: str
    stage: str
    token: int
    every: int
    keep_last: int
    keep_best: bool
    identity: dict[str, Any]
    versions: dict[str, str]
    wait_seconds: float
    resume_from: str | None = None


class TrainerCheckpoints:
    """Commits a TRL trainer's whole state after a step, and puts it back.

    All ranks call every method, at the same step.
    """

    def __init__(self, context: WorkerContext, plan: CheckpointPlan) -> None:
        self._context, self.plan = context, plan
        self._store = CheckpointStore(
            Path(plan.directory), token=plan.token, keep_last=plan.keep_last, keep_best=plan.keep_best
        )
        self._waiting: Any = None
        self.stopped_at: int | None = None

    def prepare(self) -> None:
        """Makes the group in which ranks wait while files are written and hashed: minutes, where a model is large.

        In the group that carries gradients they could only wait as long as for a peer's gradient; NCCL's watchdog then
        ends the processes.
        """
        if self._waiting is None:
            bound = timedelta(seconds=self.plan.wait_seconds)
            self._waiting = torch.distributed.new_group(backend="gloo", timeout=bound)

    def after_step(self, trainer: Any) -> None:
        """Commits when a commit is due or a stop was asked for; a stop ends the training loop."""
        step = trainer.state.global_step
        stop = self._agreed_stop(trainer.args.device)
        if step % self.plan.every == 0 or stop:
            with large_files(self._context, trainer.settings):
                self._commit(trainer, step)
        if stop:
            self.stopped_at = step
            trainer.control.should_training_stop = True

    def restore_schedule(self, trainer: Any, directory: str) -> None:
        """Learning-rate schedule and token count, as they were after the commit's step."""
        state = self._read(directory)
        trainer._total_train_tokens = state["total_train_tokens"]
        trainer.lr_scheduler.load_state_dict(state["scheduler"])

    def restore_random(self, directory: str) -> None:
        """This rank's random states, as they were after the commit's step."""
        restore_rng(self._read(directory)["rng"])

    def _read(self, directory: str) -> dict[str, Any]:
        return json.loads((Path(directory) / rank_file(self._context.rank)).read_text(encoding="utf-8"))

    def restore_watch(self, watch: Any) -> None:
        """Evaluations so far and the best weights, instead of an evaluation before the first step."""
        directory = Path(self.plan.resume_from or "")
        state = json.loads((directory / WATCH_FILE).read_text(encoding="utf-8"))
        watch.evaluations, watch.losses, watch.misses = state["evaluations"], state["losses"], state["misses"]
        if watch.best is not None:
            watch.best.loss, watch.best.step = state["best_loss"], state["best_step"]
            if (directory / BEST_FILE).is_file() and self._context.rank == 0:
                watch.best.tensors = load_file(directory / BEST_FILE)

    def _agreed_stop(self, device: torch.device) -> bool:
        """One rank that was asked is enough: all must commit the same step."""
        asked = torch.tensor([float(self._context.stop_requested)], device=device)
        torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
        return bool(asked.item() > 0)

    def _commit(self, trainer: Any, step: int) -> None:
        first = self._context.rank == 0
        found = [str(self._store.open()) if first and not self._store.path(step).is_dir() else None]
        torch.distributed.broadcast_object_list(found, src=0)
        if found[0] is None:
            return  # committed by the attempt before
        temporary = Path(found[0])
        self._refuse_nonfinite(trainer)
        try:
            trainer.model_wrapped.save_checkpoint(
                str(temporary), tag=f"global_step{step}", save_latest=True, exclude_frozen_parameters=True
            )
            own = {
                "rng": capture_rng(),
                "total_train_tokens": float(trainer._total_train_tokens),
                "scheduler": trainer.lr_scheduler.state_dict(),
            }
            write_state(temporary / rank_file(self._context.rank), own)
            if first:
                self._write_shared(trainer, temporary)
        except OSError as error:
            raise full_disk(temporary, error, 0) from error
        torch.distributed.barrier(group=self._waiting)
        if first:
            losses = [row["loss"] for row in trainer.watch.evaluations]
            self._store.commit(
                temporary,
                step,
                stage=self.plan.stage,
                identity=self.plan.identity,
                parts=[rank_file(rank) for rank in range(self._context.num_ranks)],
                metric=-losses[-1] if losses else None,
                versions=self.plan.versions,
            )
        torch.distributed.barrier(group=self._waiting)

    @staticmethod
    def _write_shared(trainer: Any, directory: Path) -> None:
        trainer.state.save_to_json(str(directory / TRAINER_STATE))
        watch = trainer.watch
        best = watch.best
        state = {
            "evaluations": watch.evaluations,
            "losses": watch.losses,
            "misses": watch.misses,
            "best_loss": best.loss if best is not None and best.step >= 0 else None,
            "best_step": best.step if best is not None else None,
        }
        write_state(directory / WATCH_FILE, state)
        if best is not None and best.tensors:
            save_file({name: tensor.contiguous() for name, tensor in best.tensors.items()}, directory / BEST_FILE)

    @staticmethod
    def _refuse_nonfinite(trainer: Any) -> None:
        for name, parameter in trainer.model.named_parameters():
            local = getattr(parameter, "ds_tensor", parameter)
            if parameter.requires_grad and not bool(torch.isfinite(local).all()):
                raise NumericsError(f"the trained tensor {name} is not finite: no checkpoint is written")


def allow_safe_classes() -> None:
    """Lets ``torch.load(weights_only=True)`` read DeepSpeed's own files; nothing beyond them is unpickled."""
    torch.serialization.add_safe_globals(SAFE_CLASSES)
