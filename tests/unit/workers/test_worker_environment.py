"""What a worker process finds in its environment before any library starts."""

from __future__ import annotations

import pytest
import torch

from rlhf.errors import ConfigError
from rlhf.workers import runtime
from rlhf.workers.runtime import base_environment, gpus_per_worker


def test_a_worker_that_asked_for_no_gpu_sees_none() -> None:
    own = base_environment(threads=1, use_gpu=False)
    assert own["CUDA_VISIBLE_DEVICES"] == "" and own["DS_ACCELERATOR"] == "cpu"


def test_ray_chooses_the_gpus_of_the_others() -> None:
    assert not {"CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"} & base_environment(threads=1, use_gpu=True).keys()


def test_a_gpu_that_torch_cannot_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "node_address", lambda: "10.0.0.7")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for use_gpu in (True, False):
        with monkeypatch.context() as within:
            within.setenv("CUDA_VISIBLE_DEVICES", "0")  # as Ray does for those that asked for one
            for name, value in base_environment(threads=1, use_gpu=use_gpu).items():
                within.setenv(name, value)
            if use_gpu:
                with pytest.raises(ConfigError, match=r"10\.0\.0\.7.*torch .* cannot use it.*gpus_per_rank=0"):
                    runtime.check_gpu()
            else:
                runtime.check_gpu()


def test_a_worker_takes_a_gpu_for_each_part_of_its_model_unless_told() -> None:
    assert [gpus_per_worker(None, {"GPU": 8.0}, parts) for parts in (1, 4)] == [1.0, 4.0]
    assert gpus_per_worker(None, {}, 4) == gpus_per_worker(0, {"GPU": 8.0}, 4) == 0.0
