"""How long ranks wait for one another: while they load as long as a start may take, afterwards as for a gradient."""

from __future__ import annotations

import time
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
    watch = trl_common.Watch(WorkerContext("sft", 0, 1, str(tmp_path)), config, 1)
    seen: list[list[timedelta]] = []
    checkpoints = SimpleNamespace(
        prepare=lambda: seen.append(collective_timeouts()), plan=SimpleNamespace(resume_from=None)
    )
    watch.trainer = SimpleNamespace(checkpoints=checkpoints, eval_rows=[])
    words: Any = (None, None, None)
    watch.on_train_begin(*words)
    assert seen == [[timedelta(seconds=LEARN)] * 2], "the group that waits for commits is made afterwards"


def test_the_bound_is_that_of_every_group(one_rank: None) -> None:
    bound_collectives(3)
    assert collective_timeouts() == [timedelta(seconds=3)] * 2


class Rank:
    """Writes the files of a model, and sees how long the others would wait meanwhile."""

    def __init__(self, context: WorkerContext) -> None:
        self.context = context
        self.seen: list[list[timedelta]] = []
        self.silences: list[float] = []

    def save_state(self, *_: Any) -> None:
        self.seen.append(collective_timeouts())
        self.silences.append(time.monotonic() - self.context.last_beat)

    def load_state(self, *_: Any) -> dict[str, Any]:
        self.save_state()
        return {"policy_weight": 1.0, "nonfinite_in_a_row": 0}


def test_files_of_a_model_may_take_longer_than_a_gradient_or_a_call(
    one_rank: None, joined: list[float], tmp_path: Path
) -> None:
    """The driver allows ``call_timeout_seconds`` of silence, so the rest of the bound is not silence at all."""
    bound_collectives(LEARN)
    config = config_of(PpoConfig, tmp_path)
    context = WorkerContext("policy", 0, 1, str(tmp_path), last_beat=time.monotonic() - 60)
    rank: Any = TrainingRank(context, config)
    rank.engine = Rank(context)
    rank.roles = SimpleNamespace(named_trained=list)
    rank.save_state(str(tmp_path), "tag")
    rank.load_state(str(tmp_path), "tag", [])
    write, call = config.checkpoint.write_timeout_seconds, config.placement.call_timeout_seconds
    assert rank.engine.seen == [[timedelta(seconds=write)] * 2] * 2 and write > call
    assert all(call - write <= silence < call - write + 5 for silence in rank.engine.silences)
    assert collective_timeouts() == [timedelta(seconds=LEARN)] * 2
    assert 0 <= time.monotonic() - context.last_beat < 5, "whoever freezes now is silent from now on"
