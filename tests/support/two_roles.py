"""Two roles whose gradients differ by orders of magnitude, step by step; trained by the engine or by torch alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rlhf.engine.engine as engine_module
from rlhf.config import EngineConfig, OptimConfig
from rlhf.engine.clipping import ParameterGroup
from rlhf.engine.engine import TrainEngine, init_process_group
from rlhf.engine.gather import whole_state
from rlhf.engine.zero import deepspeed_config
from rlhf.workers.context import WorkerContext

LIMITS = {"policy": 0.5, "critic": 2.0}
SIZES = [(1.0, 300.0), (0.01, 0.3), (30.0, math.nan), (20.0, 0.02), (0.02, 100.0), (5.0, 5.0)]
"""Factors of both roles' losses in every step; in the third no gradient is finite."""
SKIPPED = 2
SAVED_AFTER = 4
ROWS, WIDTH = 8, 13
OPTIM = OptimConfig(learning_rate=0.05, eps=0.1, weight_decay=1.0)
"""A large epsilon: Adam's steps keep most of the gradient's size, which is what clipping changes."""


class TwoRoles(nn.Module):
    """Two small networks that share nothing; odd sizes, so that no cut falls between two tensors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.policy = nn.Sequential(nn.Linear(WIDTH, 11), nn.Tanh(), nn.Linear(11, 1))
        self.critic = nn.Sequential(nn.Linear(WIDTH, 7), nn.Tanh(), nn.Linear(7, 1, bias=False))

    def forward(self, rows: Tensor, sizes: tuple[float, float]) -> Tensor:
        """Sum over rows (rows, width) of both roles' squared errors, each times its factor."""
        rows = rows.to(self.policy[0].weight.dtype)
        off = [role(rows).squeeze(1).float() - 1.0 for role in (self.policy, self.critic)]
        return sum(size * error.square().sum() for size, error in zip(sizes, off, strict=True))

    def groups(self) -> list[ParameterGroup]:
        """Both roles with their limits."""
        named = [("policy", self.policy), ("critic", self.critic)]
        return [
            ParameterGroup(name, list(role.parameters()), OPTIM.learning_rate, LIMITS[name]) for name, role in named
        ]


def rows_of(step: int) -> Tensor:
    """The global minibatch of a step, (rows, width)."""
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(step))


def by_torch(*, common_norm: bool = False) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Final weights and norms before clipping with torch alone, one process, fp32.

    Args:
        common_norm: clip both roles together at the policy's limit instead.
    """
    model = TwoRoles()
    optimizer = torch.optim.AdamW(model.parameters(), lr=OPTIM.learning_rate, eps=OPTIM.eps, weight_decay=1.0)
    norms = []
    for step, sizes in enumerate(SIZES):
        optimizer.zero_grad()
        (model(rows_of(step), sizes) / ROWS).backward()
        found = {g.name: float(torch.nn.utils.get_total_norm([p.grad for p in g.parameters])) for g in model.groups()}
        if not all(map(math.isfinite, found.values())):
            norms.append(dict.fromkeys(found, math.inf))
            continue
        norms.append(found)
        for group in model.groups() if not common_norm else ():
            torch.nn.utils.clip_grad_norm_(group.parameters, group.max_grad_norm)
        if common_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), LIMITS["policy"])
        optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}, norms


@torch.no_grad()
def spoil_fillers(module: nn.Module) -> None:
    """Under ZeRO-3 the last rank's piece of a tensor is filled up with memory that nobody has written."""
    for parameter in module.parameters():
        held: Any = parameter
        if hasattr(held, "ds_tensor"):
            rank, size = torch.distributed.get_rank(), held.ds_tensor.ds_numel
            held.ds_tensor.flatten()[max(0, held.ds_numel - rank * size) :] = math.nan


class TwoRolesWorker:
    """One rank that trains :class:`TwoRoles` by the engine."""

    def __init__(self, context: WorkerContext) -> None:
        self.context = context
        init_process_group(60)

    def train(
        self, engine: EngineConfig, dtype: torch.dtype, directory: str, cut: int | None
    ) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
        """The steps of :func:`by_torch`, with another engine from a checkpoint for the last ones.

        Args:
            directory: a new one that all ranks see, for the checkpoint.
            cut: ZeRO-3 cuts groups into pieces of about so many elements, and no tensor stays whole.
        """
        first = self._build(engine, dtype, cut)
        assert first.steps_shorter == (engine.zero_stage == 0 and dtype == torch.bfloat16)
        norms = [self._step(first, step) for step in range(SAVED_AFTER)]
        if hasattr(first._engine.optimizer, "clip_grad"):
            first._engine.optimizer.clip_grad = 1e-3  # as a state that was written with DeepSpeed's own clipping
        spoil_fillers(first.module)
        first.save_state(Path(directory), "state", {})
        second = self._build(engine, dtype, cut)
        second.load_state(Path(directory), "state")
        norms += [self._step(second, step) for step in range(SAVED_AFTER, len(SIZES))]
        named = list(second.module.named_parameters())
        return {name: value.float() for name, value in whole_state(named, keep=True).items()}, norms

    def begin_late(
        self, engine: EngineConfig, dtype: torch.dtype, directory: str, cut: int | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights after one step of both roles: by an engine that has taken no other, and by one whose policy has stood
        by while the critic took some, a checkpoint among them.

        Arguments are those of :meth:`train`.
        """
        plain = self._build(engine, dtype, cut)
        self._step(plain, 0)
        first = self._build(engine, dtype, cut)
        for step in range(3):
            self._warm_up(first, step)
        spoil_fillers(first.module)
        first.save_state(Path(directory), "state", {})
        late = self._build(engine, dtype, cut)
        late.load_state(Path(directory), "state")
        for step in range(3, 20):
            self._warm_up(late, step)
        self._step(late, 0)
        found = [whole_state(list(e.module.named_parameters()), keep=True) for e in (plain, late)]
        return found[0], found[1]

    def _warm_up(self, engine: TrainEngine, step: int) -> None:
        mine = rows_of(step).chunk(self.context.num_ranks)[self.context.rank]
        engine.backward(engine._engine(mine.to(engine.device), (0.0, 0.3)) / ROWS, last=True)
        engine.step({"critic": 1.0})

    def _build(self, engine: EngineConfig, dtype: torch.dtype, cut: int | None) -> TrainEngine:
        def with_pieces(*args: Any, **kwargs: Any) -> dict[str, Any]:
            found = deepspeed_config(*args, **kwargs)
            if cut is not None:
                found["zero_optimization"] |= {"sub_group_size": cut, "stage3_param_persistence_threshold": 0}
            return found

        engine_module.deepspeed_config = with_pieces
        try:
            model = TwoRoles()
            found = TrainEngine(model, model.groups(), OPTIM, engine, dtype=dtype, microbatch=2)
            assert found.sums_shared == (engine.zero_stage == 0 and found.world_size > 1)
            return found
        finally:
            engine_module.deepspeed_config = deepspeed_config

    def _step(self, engine: TrainEngine, step: int) -> dict[str, float]:
        """Micro-batches of two rows; only rank 0 meets a loss that is not finite."""
        rank, policy, critic = self.context.rank, *SIZES[step]
        mine = rows_of(step).chunk(self.context.num_ranks)[rank].split(2)
        sizes = (policy, critic if rank == 0 or math.isfinite(critic) else 1.0)
        for index, rows in enumerate(mine):
            loss = engine._engine(rows.to(engine.device), sizes) / ROWS
            engine.backward(loss, last=index == len(mine) - 1)
        return engine.step(dict.fromkeys(LIMITS, 1.0))
