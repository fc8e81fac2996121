"""Starting or joining a Ray runtime, and the environment of every worker process."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import RayError

from rlhf.config import PlacementConfig
from rlhf.config.ray_token import MODE_VARIABLE, create_token, fix_token_mode
from rlhf.errors import ConfigError
from rlhf.workers.directory import own_directory
from rlhf.workers.heap_settings import SHARED, WITHIN_AN_ACT
from rlhf.workers.reaper import watch_over

logger = logging.getLogger(__name__)

REACH_SECONDS = 10.0
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
STORE_BYTES = 2**29
"""Object store of a private runtime: adapters, sequences and what is told of them."""


@contextmanager
def ray_runtime(
    placement: PlacementConfig, *, num_workers: int, store_bytes: int = STORE_BYTES
) -> Iterator[dict[str, float]]:
    """Starts a private Ray runtime, or joins the configured one; yields the cluster's resources.

    A private runtime ends with the context, and with it every process that it started; a joined cluster is left
    as it was found. Inside a Ray job the job's own cluster is joined.

    Args:
        store_bytes: object store of a private runtime.
    """
    address = cluster_address(placement)
    if ray.is_initialized():
        yield ray.cluster_resources()
        return
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    if address is None:
        if os.environ.get(MODE_VARIABLE) == "token":
            create_token()
        num_cpus = max(os.cpu_count() or 1, round(num_workers * placement.cpus_per_worker) + 1)
        # Ray would give workers the lowest priority: beside any other load two ranks then wait for each other
        os.environ.setdefault("RAY_worker_niceness", "0")
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=store_bytes,
            _system_config={"prestart_worker_first_driver": False},  # our workers have an environment of their own
            **common,
        )
    else:
        fix_token_mode()
        _join(address, common)
    with ExitStack() as stack:
        if address is None:
            stack.enter_context(watch_over(os.getpid()))
        stack.callback(ray.shutdown)
        yield ray.cluster_resources()


def _join(address: str, common: dict[str, Any]) -> None:
    """Joins a cluster, or says why it cannot be joined.

    Raises:
        ConfigError: nobody answers at the address, or the token is missing or refused.
    """
    host, separator, port = address.rpartition(":")
    try:
        if separator and port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
        ray.init(address=address, **common)
    except (OSError, RayError) as error:
        reason = str(error).splitlines()[0][:300]
        raise ConfigError(
            f"placement.ray_address={address}: {reason}. Is the head up ('python -m cluster.start head'), and is this "
            "machine's ~/.ray/auth_token the head's?"
        ) from None


def cluster_address(placement: PlacementConfig) -> str | None:
    """The cluster to join, or None for a private runtime.

    Ray sets RAY_ADDRESS inside a job; the same variable may hold a dashboard's http address in a shell from which
    jobs are submitted, and then says nothing about where this process belongs.
    """
    inherited = os.environ.get("RAY_ADDRESS", "")
    if placement.ray_address is not None or not inherited or inherited.startswith(("http://", "https://")):
        return placement.ray_address
    return inherited


def worker_environment(
    rank: int,
    world_size: int,
    local_rank: int,
    local_size: int,
    address: str,
    port: int,
    *,
    threads: int,
    use_gpu: bool,
    interfaces: Mapping[str, str],
) -> dict[str, str]:
    """Environment of one training process, complete before torch or deepspeed is imported.

    Args:
        local_rank / local_size: this process among the ``local_size`` ranks of its node.
        interfaces: variables of ``node_interfaces``; without them gloo and NCCL take what the node's environment
            says, or the interface that the host's name resolves to: wrong on many hosts, harmless within one.
    """
    environment = base_environment(threads=threads, use_gpu=use_gpu)
    environment.update(
        interfaces,
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK="0" if use_gpu else str(local_rank),
        LOCAL_WORLD_SIZE=str(local_size),
        LOCAL_SIZE=str(local_size),
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
    )
    return environment


def base_environment(*, threads: int, use_gpu: bool, shares_gpu: bool = False) -> dict[str, str]:
    """Environment of every worker process."""
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",  # DeepSpeed asks for full unpickling, which can run code
        **WITHIN_AN_ACT,
        **own_directory(),
        # what DeepSpeed builds, it builds with ninja, which lives beside the interpreter
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    if shares_gpu:
        environment[SHARED] = "1"
    if not use_gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves all of the host's to a worker that asked for none
        environment["DS_ACCELERATOR"] = "cpu"
        environment["ACCELERATE_TORCH_DEVICE"] = "cpu"
    return environment


def check_gpu() -> None:
    """Refuses to go on with a CPU in a worker that was given a GPU; one without torch needs none.

    Raises:
        ConfigError: torch sees no GPU.
    """
    torch = sys.modules.get("torch")
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")  # by Ray, to a worker that asked for some
    if shown and torch is not None and not torch.cuda.is_available():
        raise ConfigError(
            f"a GPU of {node_address()} was given to this worker, and torch {torch.__version__} cannot use it: see "
            "there whether nvidia-smi works and whether this build of torch is one for its driver, or ask for none "
            "(placement.gpus_per_rank=0 and the like)"
        )


def node_address() -> str:
    """Address of this node within the cluster."""
    return ray.util.get_node_ip_address()


def node_interfaces(chosen: str | None = None) -> dict[str, str]:
    """Variables that lead gloo and NCCL to one network interface of this node.

    Args:
        chosen: that interface; None: what the node's environment says, and otherwise the one that has its address.
    """
    address = node_address()
    found = (name for name, entries in psutil.net_if_addrs().items() for entry in entries if entry.address == address)
    interface = chosen or next(found, None)
    # alone the name is a prefix for NCCL: eth1 also means eth10
    own = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": f"={interface}"} if interface else {}
    said = {name: os.environ[name] for name in INTERFACE_VARIABLES if os.environ.get(name)}
    return own if chosen else {**own, **said}


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as sock:
        sock.bind(("", 0))
        return int(sock.getsockname()[1])


def gpus_per_worker(wanted: float | None, resources: dict[str, float], parts: int = 1) -> float:
    """The configured GPUs per worker; by default one per part of a model where the cluster has GPUs, otherwise none."""
    if wanted is not None:
        return wanted
    return float(parts) if resources.get("GPU", 0) >= 1 else 0.0


def gpus_here(wanted: float | None) -> float:
    """The same in the cluster that this process has joined."""
    return gpus_per_worker(wanted, ray.cluster_resources())
