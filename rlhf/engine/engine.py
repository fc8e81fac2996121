"""The training engine: DeepSpeed on every device, with the caller in charge of denominators."""

from __future__ import annotations

import importlib
import json
import math
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils import groups as deepspeed_groups
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor, nn

from rlhf.config import EngineConfig, OptimConfig
from rlhf.engine import alike, flat, master_weights, pieces, shared_sum, uncompiled
from rlhf.engine.checkpoint.rng import capture_rng, restore_rng
from rlhf.engine.checkpoint.store import full_disk, rank_file, write_state
from rlhf.engine.clipping import GroupClipping, ParameterGroup
from rlhf.engine.unbegun import UnbegunGroups
from rlhf.engine.zero import deepspeed_config
from rlhf.errors import CheckpointError, ConfigError, NumericsError

SAFE_CLASSES = [LossScaler, ZeroStageEnum, fragment_address]
"""All that DeepSpeed's files hold beside tensors and plain containers; nothing else is unpickled."""


def _no_shared_memory_op() -> None:
    """DeepSpeed builds a shared-memory all-reduce when it joins ranks on a CPU; only tensor-parallel inference uses it.

    A rank that is killed while it builds or loads the operation leaves a lock file that every later run waits for,
    without a bound; one that is killed afterwards leaves 66 MiB of shared memory.
    """


def init_process_group(timeout_seconds: float) -> str:
    """Joins the process group named by the RANK/WORLD_SIZE/MASTER_* environment; returns the backend.

    Args:
        timeout_seconds: for the others to come, and of every collective until ``bound_collectives``.
    """
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    # by its full name: as an attribute of its package it is hidden by torch itself
    importlib.import_module("deepspeed.comm.torch").build_shm_op = _no_shared_memory_op  # type: ignore[attr-defined]
    alike.install()
    uncompiled.import_muon()
    if not torch.distributed.is_initialized():
        bound = timedelta(seconds=timeout_seconds)
        deepspeed.init_distributed(dist_backend=backend, timeout=bound, verbose=False)
        # DeepSpeed's collectives run in a group of its own, which it would make with torch's default of half an hour:
        # the peers of a frozen rank would wait that long
        deepspeed_groups._WORLD_GROUP = torch.distributed.new_group(timeout=bound)
    return backend


def bound_collectives(timeout_seconds: float) -> None:
    """Lets every process group of this rank wait so long for a peer from now on.

    While ranks load, hosts may be minutes apart: one has the weights in its cache, another reads them over a network.
    In learning, seconds apart are normal, and a frozen peer is to be found.
    """
    for group in torch.distributed.distributed_c10d._world.pg_map:
        torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_seconds), group)


@contextmanager
def patient_collectives(timeout_seconds: float) -> Iterator[None]:
    """Lets every group wait at least so long for a peer while the context is open: one may still write a large file."""
    groups = dict(zip(torch.distributed.distributed_c10d._world.pg_map, collective_timeouts(), strict=True))
    for group, before in groups.items():
        patient = max(before, timedelta(seconds=timeout_seconds))
        torch.distributed.distributed_c10d._set_pg_timeout(patient, group)
    try:
        yield
    finally:
        for group, before in groups.items():
            torch.distributed.distributed_c10d._set_pg_timeout(before, group)


def collective_timeouts() -> list[timedelta]:
    """How long each process group of this rank waits for a peer."""
    pgs: Any = torch.distributed.distributed_c10d._world.pg_map
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return [pg._get_backend(device).options._timeout for pg in pgs]


class TrainEngine:
    """A module under DeepSpeed ZeRO.

    Losses passed to ``backward`` are sums over this rank's tokens divided by the *global* denominator: the engine
    undoes DeepSpeed's mean over ranks, so neither micro-batching nor the number of ranks changes the gradient.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: list[ParameterGroup],
        optim: OptimConfig,
        engine: EngineConfig,
        *,
        dtype: torch.dtype,
        microbatch: int,
    ) -> None:
        self._groups = groups
        optimizer = _build_optimizer(groups, optim)
        # without ZeRO in bf16 DeepSpeed steps once on zeros while it is built: weights would decay, Adam would count it
        takes_empty_step = engine.zero_stage == 0 and dtype == torch.bfloat16
        if takes_empty_step:
            for group in optimizer.param_groups:
                group["lr"] = 0.0
        config = deepspeed_config(engine, dtype=dtype, microbatch=microbatch, accumulation=1, max_grad_norm=0.0)
        if engine.zero_stage == 3:
            pieces.cut(module, config, dtype)
        self._engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
        self.steps_shorter = False
        """Whether the bf16 step without ZeRO is ours, for what is measured already."""
        if takes_empty_step:
            optimizer.state.clear()
            self.steps_shorter = master_weights.shorten_step(self._engine.optimizer)
        self._clipping = GroupClipping(optimizer, groups, engine.zero_stage)
        self._unbegun = UnbegunGroups(optimizer)
        self.sums_shared = False
        """Whether ranks of one host sum their gradients in shared memory."""
        self.steps_flat = False
        """Whether the optimizer takes a group's tensors as one."""
        if engine.zero_stage == 0 and self._engine.device.type == "cpu":
            self._share_sums(optimizer)
        self.zero_stage = engine.zero_stage
        self.world_size = torch.distributed.get_world_size()
        self.rank = torch.distributed.get_rank()

    def _share_sums(self, optimizer: torch.optim.Optimizer) -> None:
        trained = [p for group in self._groups for p in group.parameters]
        data_parallel = deepspeed_groups._get_sequence_data_parallel_group()
        found = shared_sum.install(self._engine, trained, data_parallel)
        self.sums_shared = found is not None
        if found is not None and self._engine.optimizer is optimizer and type(optimizer) is torch.optim.AdamW:
            self._clipping.lie_flat(found.mean)
            flat.install(optimizer, found.mean, before=self._clipping.clip, after=self._unbegun.forget)
            self.steps_flat = True

    @property
    def type_name(self) -> str:
        """Type of the engine that really runs."""
        return type(self._engine).__name__

    @property
    def device(self) -> torch.device:
        """Where batches must be."""
        return self._engine.device

    @property
    def module(self) -> nn.Module:
        """The wrapped module."""
        return self._engine.module

    def __call__(self, task: str, **inputs: Any) -> Any:
        """A forward pass through the engine's hooks."""
        return self._engine(task, **inputs)

    def evaluate(self, task: str, **inputs: Any) -> Any:
        """A pass without gradients."""
        with torch.no_grad():
            return self._engine(task, **inputs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulates one micro-batch's gradient; ``last`` closes the minibatch.

        Raises:
            NumericsError: for a loss that is not finite.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self.world_size)

    def step(self, scales: Mapping[str, float]) -> dict[str, float]:
        """One optimizer step at ``scale * base learning rate`` of every group.

        Args:
            scales: by group. One that is not named has not begun to learn: it stays as it is, and its later first step
                is the optimizer's first. Its gradients must be zero in this step.

        Returns:
            Norm of every group's gradient before clipping. A gradient that is not finite changes nothing, on any rank
            and in any group: all norms are infinite then.
        """
        for group, ours in zip(self._engine.optimizer.param_groups, self._groups, strict=True):
            group["lr"] = ours.learning_rate * scales.get(ours.name, 0.0)
        self._unbegun.names = frozenset(group.name for group in self._groups) - scales.keys()
        skipped = {group.name: math.inf for group in self._groups}
        if not self._clipping.measure():
            self._step_without_update()
            return skipped
        self._engine.step()
        return self._clipping.norms if self._engine.was_step_applied() else skipped

    def _step_without_update(self) -> None:
        """DeepSpeed counts the step; weights and moments stay as they are. ZeRO 1 to 3 do this by themselves."""
        for group in self._groups:
            for parameter in group.parameters:
                parameter.grad = None if parameter.grad is None else torch.zeros_like(parameter.grad)
        optimizer = self._engine.optimizer
        update, optimizer.step = optimizer.step, lambda *_, **__: None
        try:
            self._engine.step()
        finally:
            optimizer.step = update

    def save_state(self, directory: Path, tag: str, own: Mapping[str, Any]) -> None:
        """Writes what this rank needs to go on exactly: weights, optimizer partition, random states, ``own``.

        All ranks call it with a directory that all see.

        Raises:
            CheckpointError: a file cannot be written.
            NumericsError: a trained tensor is not finite.
        """
        self._refuse_nonfinite()
        try:
            self._engine.save_checkpoint(str(directory), tag=tag, save_latest=False, exclude_frozen_parameters=True)
            write_state(directory / rank_file(self.rank), {"rng": capture_rng(), **own})
        except OSError as error:
            raise full_disk(directory, error, 0) from error
        except RuntimeError as error:
            cause = error.__cause__ or error.__context__
            if "PytorchStreamWriter" in str(error) or isinstance(cause, OSError):
                known = cause if isinstance(cause, OSError) else OSError(str(error))
                raise full_disk(directory, known, 0) from error
            raise

    def load_state(self, directory: Path, tag: str) -> dict[str, Any]:
        """Takes over what ``save_state`` wrote; returns ``own``. Call it once, before the first step.

        Raises:
            CheckpointError: a file is missing or holds more than tensors and plain containers.
        """
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
        try:
            with torch.serialization.safe_globals(SAFE_CLASSES):
                path, _ = self._engine.load_checkpoint(str(directory), tag=tag, load_module_strict=False)
        except pickle.UnpicklingError as error:
            raise CheckpointError(f"{directory / tag} holds pickled code and is not loaded: {error}") from None
        if path is None:
            raise CheckpointError(f"{directory} holds no state for {tag}")
        if hasattr(self._engine.optimizer, "clip_grad"):
            self._engine.optimizer.clip_grad = 0.0  # DeepSpeed takes over what was in force when the state was written
        state = json.loads((directory / rank_file(self.rank)).read_text(encoding="utf-8"))
        restore_rng(state.pop("rng"))
        return state

    def _refuse_nonfinite(self) -> None:
        for group in self._groups:
            for parameter in group.parameters:
                if not bool(torch.isfinite(_own_elements(parameter)).all()):
                    raise NumericsError(f"a trained tensor of {group.name} is not finite: no checkpoint is written")

    def all_reduce_sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums scalars over ranks."""
        packed = torch.tensor(
            list(values.values()), dtype=torch.float64 if self.device.type == "cpu" else torch.float32
        )
        packed = packed.to(self.device)
        torch.distributed.all_reduce(packed)
        return dict(zip(values, packed.tolist(), strict=True))

    @contextmanager
    def gathered(self, parameters: list[nn.Parameter]) -> Any:
        """Whole tensors of partitioned parameters (ZeRO-3) on every rank while the context is open."""
        with deepspeed.zero.GatheredParameters(parameters, enabled=self.zero_stage == 3):
            yield

    @contextmanager
    def live(self, names: Callable[[str], bool], named: list[tuple[str, nn.Parameter]]) -> Iterator[dict[str, Tensor]]:
        """The named parameters that ``names`` accepts, whole, where they are; only while the context is open."""
        chosen = [(name, p) for name, p in named if names(name)]
        if not chosen:
            raise ConfigError("no trained tensor matches: the adapter is empty")
        with self.gathered([p for _, p in chosen]):
            yield {name: p.detach() for name, p in chosen}


def _own_elements(parameter: nn.Parameter) -> Tensor:
    """What this rank holds of a parameter; what fills a piece up under ZeRO-3 is memory that nobody has written."""
    piece = getattr(parameter, "ds_tensor", None)
    if piece is None:
        return parameter
    whole: Any = parameter
    left = whole.ds_numel - torch.distributed.get_rank(whole.ds_process_group) * piece.ds_numel
    return piece.flatten()[: max(0, min(piece.ds_numel, left))]


def _build_optimizer(groups: list[ParameterGroup], optim: OptimConfig) -> torch.optim.Optimizer:
    params = [{"params": g.parameters, "lr": g.learning_rate, "name": g.name} for g in groups]
    if optim.optimizer == "adamw_8bit":
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(params, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay)
    return torch.optim.AdamW(params, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=True)


def learning_rate_scale(optim: OptimConfig, step: int, num_steps: int) -> float:
    """Multiplier of the base learning rate at optimizer step ``step`` of ``num_steps`` (0-based)."""
    warmup = round(optim.warmup_fraction * num_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, num_steps - warmup)
    if optim.schedule == "constant":
        return 1.0
    if optim.schedule == "linear":
        return max(0.0, 1.0 - progress)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
