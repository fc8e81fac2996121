"""What a worker process finds in its environment before any library starts."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cluster.checks import on_cluster
from rlhf.errors import ConfigError
from rlhf.workers import directory, runtime
from rlhf.workers.runtime import base_environment, gpus_per_worker, worker_environment


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


@pytest.fixture
def eth1(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node whose address is on ``eth1``, and nothing said about interfaces."""
    entries = {"lo": "127.0.0.1", "eth10": "10.9.0.7", "eth1": "10.0.0.7"}
    monkeypatch.setattr(runtime, "node_address", lambda: "10.0.0.7")
    monkeypatch.setattr(
        runtime.psutil, "net_if_addrs", lambda: {name: [SimpleNamespace(address=a)] for name, a in entries.items()}
    )
    for name in runtime.INTERFACE_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("eth1")
def test_collectives_take_the_interface_of_the_node_s_address_and_no_other() -> None:
    """NCCL reads a plain name as a prefix."""
    assert runtime.node_interfaces() == {"GLOO_SOCKET_IFNAME": "eth1", "NCCL_SOCKET_IFNAME": "=eth1"}


@pytest.mark.usefixtures("eth1")
def test_what_a_node_says_of_its_interfaces_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib")
    found = runtime.node_interfaces()
    assert found == {"GLOO_SOCKET_IFNAME": "eth1", "NCCL_SOCKET_IFNAME": "ib"}
    environment = worker_environment(0, 2, 0, 1, "10.0.0.7", 1, threads=1, use_gpu=False, interfaces=found)
    assert environment["NCCL_SOCKET_IFNAME"] == "ib" and environment["GLOO_SOCKET_IFNAME"] == "eth1"


@pytest.mark.usefixtures("eth1")
def test_the_config_s_interface_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth1")
    assert runtime.node_interfaces("ib0") == {"GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": "=ib0"}


def test_the_doctor_tries_what_a_run_takes(eth1: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: dict[str, str] = {}
    monkeypatch.setattr(on_cluster.ray.util, "get_node_ip_address", lambda: "10.0.0.7")
    monkeypatch.setattr(
        on_cluster, "join", lambda *_: tried.update({n: os.environ[n] for n in runtime.INTERFACE_VARIABLES})
    )
    for said in (None, "ib"):
        with monkeypatch.context() as within:
            for name in runtime.INTERFACE_VARIABLES:  # what the doctor sets goes with the test
                within.setenv(name, "")
                os.environ.pop(name)
            if said:
                within.setenv("NCCL_SOCKET_IFNAME", said)
            expected = runtime.node_interfaces()
            on_cluster.join_by_interface(0, "gloo", 2, "10.0.0.7", 1)
            assert tried == expected


def test_a_worker_takes_a_gpu_for_each_part_of_its_model_unless_told() -> None:
    assert [gpus_per_worker(None, {"GPU": 8.0}, parts) for parts in (1, 4)] == [1.0, 4.0]
    assert gpus_per_worker(None, {}, 4) == gpus_per_worker(0, {"GPU": 8.0}, 4) == 0.0


def test_workers_of_a_job_stay_in_their_own_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    for place, told in ((copy, {}), (tmp_path, {directory.DIRECTORY: str(tmp_path)})):
        monkeypatch.chdir(place)
        assert directory.own_directory() == told
        assert told.items() <= base_environment(threads=1, use_gpu=False).items()


def test_a_directory_that_is_gone_is_told_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert directory.own_directory() == {}


def test_a_host_without_the_driver_s_directory_stays_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(directory.DIRECTORY, str(tmp_path / "elsewhere"))
    directory.enter_directory()
    assert Path.cwd() == tmp_path and "elsewhere, which is not here" in caplog.text
    (tmp_path / "elsewhere").mkdir()
    directory.enter_directory()
    assert Path.cwd() == tmp_path / "elsewhere"
