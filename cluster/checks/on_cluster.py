"""``python -m cluster.checks.on_cluster``: the doctor inside a cluster, as a job or on one of its nodes. Imports ray.

It runs one small task per node, pinned there, and compares what they say.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.checks import machine
from cluster.checks.probe import join
from cluster.checks.record import Record, fail, ok, warn
from cluster.checks.software import installed, same_versions

MARK = "DOCTOR "
"""Begins the line of the log that holds the records."""
WAIT_SECONDS = 60.0
SKEW_WARN, SKEW_FAIL = 1.0, 30.0
OBJECT_BYTES = 2**24


@dataclass(frozen=True)
class Node:
    """One live node."""

    node_id: str
    address: str
    gpus: float

    def run(self, function: Callable[..., Any], *args: Any, gpus: int = 0) -> Any:
        """Starts a task here and nowhere else; returns its reference."""
        place = NodeAffinitySchedulingStrategy(self.node_id, soft=False)
        remote: Any = ray.remote(function)
        return remote.options(num_cpus=0, num_gpus=gpus, scheduling_strategy=place, max_retries=0).remote(*args)


def live_nodes() -> list[Node]:
    """Nodes in a stable order, the one of this process first."""
    own = ray.get_runtime_context().get_node_id()
    found = [Node(n["NodeID"], n["NodeManagerAddress"], n["Resources"].get("GPU", 0.0)) for n in ray.nodes()
             if n["Alive"]]  # fmt: skip
    return sorted(found, key=lambda n: (n.node_id != own, n.address, n.node_id))


def examine(run_dir: str | None) -> list[Record]:
    """All checks of the cluster that this process is connected to."""
    nodes = live_nodes()
    total = ", ".join(f"{n.address}" + (f" ({n.gpus:g} GPU)" if n.gpus else "") for n in nodes)
    records = [ok("nodes", f"{len(nodes)}: {total}")]
    try:
        facts = dict(zip(labels(nodes), gather([n.run(node_facts) for n in nodes]), strict=True))
    except RayError as error:
        reason = str(error).strip().splitlines()[-1][:200]
        return [*records, fail("nodes", f"a task did not run on every node: {reason}",
                               "install this package on every node, and look at 'ray status'")]  # fmt: skip
    records.append(same_versions({name: f["versions"] for name, f in facts.items()}))
    for name, found in facts.items():
        records += [Record(f"{r['name']} on {name}", r["status"], r["detail"], r["remedy"]) for r in found["records"]]
    for check in (check_clocks, check_object_transfer, check_gloo, check_nccl):
        records += _guarded(check, nodes)
    if run_dir is not None:
        records += _guarded(lambda found: check_run_dir(found, Path(run_dir)), nodes)
    return records


def _guarded(check: Callable[[list[Node]], list[Record]], nodes: list[Node]) -> list[Record]:
    name = getattr(check, "__name__", "check").removeprefix("check_").replace("_", " ")
    try:
        return check(nodes)
    except RayError as error:
        told = str(error).strip().splitlines() or [type(error).__name__]
        remedy = "see 'ray status'; between nodes, open the ports and set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME"
        return [fail(name, told[-1][:300], remedy)]


def labels(nodes: list[Node]) -> list[str]:
    """A name per node: its address, with a number where several nodes share one."""
    names = [n.address for n in nodes]
    return [f"{name}#{names[:i].count(name) + 1}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def gather(references: list[Any], seconds: float = WAIT_SECONDS) -> list[Any]:
    """Results of all, within a bound."""
    return ray.get(references, timeout=seconds)


def node_facts() -> dict[str, Any]:
    """What one node says of itself."""
    records = [
        machine.check_shared_memory(),
        machine.check_disk(tempfile.gettempdir(), "temporary disk"),
        machine.check_memory(),
    ]
    return {"versions": installed(), "records": [r.as_dict() for r in records if r.status != "ok"]}


def clock() -> float:
    """Seconds since 1970, where this runs."""
    return time.time()


def check_clocks(nodes: list[Node]) -> list[Record]:
    """Each node's clock against this one's, by the fastest of some round trips."""
    gather([n.run(clock) for n in nodes])  # workers start here, not in the measurement
    skews = {}
    for name, node in zip(labels(nodes), nodes, strict=True):
        trips = []
        for _ in range(5):
            before = time.time()
            there = gather([node.run(clock)])[0]
            after = time.time()
            trips.append((after - before, there - (before + after) / 2))
        skews[name] = min(trips)[1]
    return [judge_clocks(skews)]


def judge_clocks(skews: dict[str, float]) -> Record:
    """The largest difference between two nodes' clocks, in seconds."""
    middle = statistics.median(skews.values())
    name, worst = max(((name, skew - middle) for name, skew in skews.items()), key=lambda pair: abs(pair[1]))
    detail = f"{name} is {worst:+.3f} s off"
    remedy = "switch on time synchronization on every node (timedatectl set-ntp true)"
    if abs(worst) > SKEW_FAIL:
        return fail("clocks", detail, remedy)
    return warn("clocks", detail, remedy) if abs(worst) > SKEW_WARN else ok("clocks", f"within {abs(worst):.3f} s")


def check_object_transfer(nodes: list[Node]) -> list[Record]:
    """Every node reads an object that the node before it in the list put."""
    seconds = []
    for index, node in enumerate(nodes):
        holder = gather([nodes[index - 1].run(put_object)])[0]
        seconds.append(gather([node.run(read_object, holder)])[0])
    rate = OBJECT_BYTES / max(seconds) / 2**20
    detail = f"16 MiB from node to node, the slowest at {rate:.0f} MiB/s"
    if rate < 5:
        return [warn("object store", detail, "adapters travel this way at every step: check the network")]
    return [ok("object store", detail)]


def put_object() -> list[Any]:
    """Puts bytes here; the reference is wrapped, so that only who reads them moves them."""
    return [ray.put(os.urandom(OBJECT_BYTES))]


def read_object(holder: list[Any]) -> float:
    """Seconds until the bytes are here."""
    started = time.perf_counter()
    ray.get(holder[0], timeout=WAIT_SECONDS)
    return time.perf_counter() - started


def check_gloo(nodes: list[Node]) -> list[Record]:
    """One rank per node adds a number."""
    return [_collective("gloo", nodes, gpus=0)]


def check_nccl(nodes: list[Node]) -> list[Record]:
    """One rank per GPU node adds a number."""
    able = [n for n in nodes if n.gpus >= 1]
    return [_collective("nccl", able, gpus=1)] if able else []


def _collective(backend: str, nodes: list[Node], *, gpus: int) -> Record:
    name = f"{backend} between nodes"
    address, port = gather([nodes[0].run(rendezvous)])[0]
    started = time.perf_counter()
    tasks = [
        n.run(join_by_interface, rank, backend, len(nodes), address, port, gpus=gpus) for rank, n in enumerate(nodes)
    ]
    try:
        gather(tasks)
    except GetTimeoutError:
        for task in tasks:
            ray.cancel(task, force=True)
        if gpus:
            return warn(
                name, f"no answer within {WAIT_SECONDS:.0f} s", "are the GPUs busy? try again when they are free"
            )
        remedy = f"set {backend.upper()}_SOCKET_IFNAME to the interface between the nodes; open its ports"
        return fail(name, f"no answer within {WAIT_SECONDS:.0f} s", remedy)
    return ok(name, f"{len(nodes)} rank(s) met at {address} and added up in {time.perf_counter() - started:.1f} s")


def join_by_interface(rank: int, backend: str, ranks: int, address: str, port: int) -> None:
    """One rank, on the interface that a run would take: that of the node's address, or as the environment says.

    Left alone, gloo listens where the host's name points to, which is often the loopback.
    """
    own = ray.util.get_node_ip_address()
    for interface in machine.interfaces_of(own)[:1]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")  # alone the name is a prefix: eth1 means eth10 too
    join(backend, rank, ranks, address, port)


def rendezvous() -> tuple[str, int]:
    """This node's address in the cluster and a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), int(probe.getsockname()[1])


def check_run_dir(nodes: list[Node], run_dir: Path) -> list[Record]:
    """Whether all nodes see one directory, and may write there."""
    folder = run_dir / f".doctor-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True)
        (folder / "driver").write_text("driver", encoding="utf-8")
        told = gather([n.run(visit, str(folder), str(index)) for index, n in enumerate(nodes)])
        seen = {p.name for p in folder.iterdir()}
    except OSError as error:
        return [
            fail("run directory", f"{run_dir}: {error.strerror or error}", "set run_dir to a directory to write in")
        ]
    finally:
        gather([n.run(leave, str(folder), str(index)) for index, n in enumerate(nodes)])
        leave(str(folder), "driver")
    return [judge_run_dir(str(run_dir), dict(zip(labels(nodes), told, strict=True)), seen)]


def judge_run_dir(run_dir: str, told: dict[str, tuple[bool, str]], seen: set[str]) -> Record:
    """From (the driver's file was there, error of writing) per node, and the files that the driver found."""
    refused = [f"{name} ({error})" for name, (_, error) in told.items() if error]
    if refused:
        return fail(
            "run directory", f"{run_dir} cannot be written on {', '.join(refused)}", "fix its owner and mode there"
        )
    local = [name for index, (name, (there, _)) in enumerate(told.items()) if not there or str(index) not in seen]
    if local:
        return warn("run directory", f"{run_dir} is another directory on {', '.join(local)}",
                    "mount one file system on all nodes, or expect outputs of ranks there to be collected")  # fmt: skip
    return ok("run directory", f"{run_dir} is one directory on {len(told)} node(s)")


def visit(folder: str, name: str) -> tuple[bool, str]:
    """Looks for the driver's file and leaves one."""
    there = (Path(folder) / "driver").is_file()
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / name).write_text(name, encoding="utf-8")
    except OSError as error:
        return there, error.strerror or str(error)
    return there, ""


def leave(folder: str, name: str) -> None:
    """Removes what ``visit`` left, and the folder with its last file."""
    (Path(folder) / name).unlink(missing_ok=True)
    try:
        Path(folder).rmdir()
    except OSError:
        return  # another node's file is still there, or the folder is gone


def main(words: list[str] | None = None) -> int:
    """Joins the cluster of this node and prints the records as one line."""
    parser = argparse.ArgumentParser(prog="python -m cluster.checks.on_cluster")
    parser.add_argument("--run-dir")
    args = parser.parse_args(words)
    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    try:
        records = examine(args.run_dir)
    finally:
        ray.shutdown()
    sys.stdout.write("\n" + MARK + json.dumps([r.as_dict() for r in records]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
