"""How long ranks wait for one another: while they load as long as a start may take, afterwards as for a gradient."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from rlhf.config import PpoConfig, SftConfig, build_config
from rlhf.engine.engine import bound_collectives, collective_timeouts
from rlhf.workers import training_rank, trl_common
from rlhf.workers.context import WorkerContext
from rlhf.workers.training_rank import TrainingRank

START, LEARN = 700.0, 5.0
PLACEMENT = {"start_timeout_seconds": START, "collective_timeout_seconds": LEARN}


def config_of(cls: type, run_dir: Path) -> Any:
    tree: dict[str, Any] = {"run_dir": str(run_dir), "model": {"name": "m"}, "placement": PLACEMENT}
    own = (
        {"data": {"train": "t"}}
        if cls is SftConfig
        else {"prompts": "p", "scores": [{"kind": "function", "path": "a:b"}]}
    )
    return build_config(cls, {**tree, **own}, source="test")


@pytest.fixture
def one_rank() -> Iterator[None]:
    bound = timedelta(seconds=START)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=bound)
    dist.new_group(timeout=bound)
    yield
    dist.destroy_process_group()


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The bounds with which ranks join."""
    bounds: list[float] = []

    def join(seconds: float) -> str:
        bounds.append(seconds)
        return "gloo"

    for module in (training_rank, trl_common):
        monkeypatch.setattr(module, "init_process_group", join)
    return bounds


def test_ranks_of_ppo_load_within_the_bound_of_a_start(
    one_rank: None, joined: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[timedelta]] = []
    rank = TrainingRank(WorkerContext("policy", 0, 1, str(tmp_path)), config_of(PpoConfig, tmp_path))

    def build_engine() -> Any:
        seen.append(collective_timeouts())
        return SimpleNamespace(device=torch.device("cpu"))

    monkeypatch.setattr(rank, "_build_engine", build_engine)
    monkeypatch.setattr(training_rank, "update_costs", lambda *_, **__: None)
    monkeypatch.setattr(training_rank, "product_peak", lambda *_: 1.0)
    monkeypatch.setattr(training_rank.halved, "keep_panels", lambda *_: None)
    module: Any = torch.nn.Linear(2, 2)
    module.named_trained, module.enable_checkpointing = list, lambda **_: None
    rank.build(module, module)
    assert joined == [START]
    assert seen == [[timedelta(seconds=START)] * 2], "until all have met in it"
    assert collective_timeouts() == [timedelta(seconds=LEARN)] * 2


def test_ranks_of_sft_load_within_the_bound_of_a_start(
    one_rank: None, joined: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under ZeRO-3 they meet while they read the weights."""
    states: list[timedelta] = []
    monkeypatch.setattr(trl_common, "PartialState", lambda backend, timeout: states.append(timeout))
    config = config_of(SftConfig, tmp_path)
    trl_common.join_ranks(config, "sft")
    assert joined == [START] and states == [timedelta(seconds=START)]
    trainer: Any = trl_common.ExactTrainer()
    trainer.settings = config
    seen: list[list[timedelta]] = []
    trainer.checkpoints = SimpleNamespace(prepare=lambda: None, plan=SimpleNamespace(resume_from=None))
    trainer.train = lambda **_: seen.append(collective_timeouts())
    trainer.train_or_resume()
    assert seen == [[timedelta(seconds=LEARN)] * 2]


def test_the_bound_is_that_of_every_group(one_rank: None) -> None:
    bound_collectives(3)
    assert collective_timeouts() == [timedelta(seconds=3)] * 2
