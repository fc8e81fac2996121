"""How long ranks of SFT and reward training wait for one another while a checkpoint is made."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from rlhf.config import SftConfig, build_config
from rlhf.engine.checkpoint.store import CheckpointStore
from rlhf.stages.training import _plan
from rlhf.workers.context import WorkerContext
from rlhf.workers.trl_checkpoint import TrainerCheckpoints

SHORT, LONG = timedelta(seconds=7), timedelta(seconds=800)


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=SHORT)
    yield
    dist.destroy_process_group()


def trainer_at(step: int, checkpoints: TrainerCheckpoints, config: SftConfig) -> Any:
    def save_checkpoint(directory: str, tag: str, **_: Any) -> None:
        (Path(directory) / tag).write_text("weights")

    return SimpleNamespace(
        settings=config,
        args=SimpleNamespace(device=torch.device("cpu")),
        state=SimpleNamespace(global_step=step, save_to_json=lambda path: Path(path).write_text("{}")),
        watch=SimpleNamespace(evaluations=[], losses=[], misses=0, best=None),
        model=torch.nn.Linear(2, 2),
        model_wrapped=SimpleNamespace(save_checkpoint=save_checkpoint),
        lr_scheduler=SimpleNamespace(state_dict=dict),
        checkpoints=checkpoints,
        _total_train_tokens=3,
    )


def test_ranks_wait_for_a_commit_as_long_as_its_files_may_take(
    one_rank: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Rank 0 hashes the files of all ranks: for a large model longer than a collective may take, and NCCL aborts."""
    tree = {"run_dir": str(tmp_path), "model": {"name": "m"}, "data": {"train": "rows.jsonl"},
            "checkpoint": {"every": 1, "write_timeout_seconds": LONG.total_seconds()}}  # fmt: skip
    config = build_config(SftConfig, tree, source="t")
    store = CheckpointStore(tmp_path / "checkpoints")
    plan = _plan(config, store, {}, None)
    checkpoints = TrainerCheckpoints(WorkerContext("sft", 0, 1, str(tmp_path)), plan)
    bounds: list[timedelta] = []
    barrier = dist.barrier

    def recorded(group: Any = None, **rest: Any) -> Any:
        used: Any = group or dist.group.WORLD
        bounds.append(used._get_backend(torch.device("cpu")).options._timeout)
        return barrier(group, **rest)

    monkeypatch.setattr(dist, "barrier", recorded)
    checkpoints.prepare()
    groups = len(dist.distributed_c10d._world.pg_map)
    for step in (1, 2):
        checkpoints.after_step(trainer_at(step, checkpoints, config))
    assert store.steps() == [1, 2]
    assert bounds == [LONG] * 4, "before the commit and after it"
    assert len(dist.distributed_c10d._world.pg_map) == groups == 2, "one group for the whole run"
