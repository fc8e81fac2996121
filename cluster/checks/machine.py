"""This machine: shared memory, disk, memory, ports, limits, token."""

from __future__ import annotations

import os
import resource
import socket
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from cluster.checks.record import Record, fail, ok, size, warn
from rlhf.config.ray_token import MODE_VARIABLE, TOKEN_VARIABLE, token_path

GIB = 2**30
SHM_FAIL, SHM_WARN = 0.25 * GIB, 2 * GIB
DISK_FAIL, DISK_WARN = 1 * GIB, 10 * GIB
RAY_FULL_SHARE = 0.95
"""Ray stops writing objects to a disk that is fuller than this."""
PORTS = {6379: "Ray's head", 8265: "the dashboard and jobs", 10001: "Ray clients", 52365: "the node's agent"}
StatVfs = Callable[[str], Any]


def check_shared_memory(path: str = "/dev/shm", statvfs: StatVfs = os.statvfs) -> Record:
    """The object store lives here; containers get 64 MiB unless told otherwise."""
    try:
        found = statvfs(path)
    except OSError as error:
        return fail("shared memory", f"{path}: {error}", "mount a tmpfs there")
    total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    detail = f"{path} has {size(free)} free of {size(total)}"
    remedy = "containers: docker run --shm-size=8g, or an emptyDir of medium Memory; hosts: mount -o remount,size=8G"
    if free < SHM_FAIL:
        return fail("shared memory", detail, remedy)
    return warn("shared memory", detail, remedy) if free < SHM_WARN else ok("shared memory", detail)


def check_disk(path: str | Path, name: str = "disk", statvfs: StatVfs = os.statvfs) -> Record:
    """Room for checkpoints, logs and Ray's session."""
    where = _existing(Path(path))
    try:
        found = statvfs(str(where))
    except OSError as error:
        return fail(name, f"{where}: {error}", "set run_dir to a disk that can be read")
    total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    used = 1 - free / total if total else 1.0
    detail = f"{where} has {size(free)} free of {size(total)}"
    if free < DISK_FAIL:
        return fail(name, detail, "free some space, or set run_dir (and TMPDIR) to another disk")
    if free < DISK_WARN:
        return warn(name, detail, "a 7B checkpoint with its optimizer takes more: free some space")
    if used > RAY_FULL_SHARE:
        return warn(name, f"{detail} ({used:.0%} full)", "Ray stops spilling objects to a disk fuller than 95%")
    return ok(name, detail)


def check_memory(available: int | None = None) -> Record:
    """Main memory: base models are loaded through it."""
    memory = psutil.virtual_memory()
    free = memory.available if available is None else available
    detail = f"{size(free)} available of {size(memory.total)}"
    if free < GIB:
        return fail("main memory", detail, "end other programs: Ray's own processes take about a gibibyte")
    return warn("main memory", detail, "a worker takes about 1 GiB before its model") if free < 4 * GIB else ok(
        "main memory", detail
    )  # fmt: skip


def check_open_files(limit: int | None = None) -> Record:
    """Ray opens a socket per worker and object."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    if soft != resource.RLIM_INFINITY and soft < 4096:
        return warn("open files", f"at most {soft}", "ulimit -n 65536 (and in /etc/security/limits.conf)")
    return ok("open files", f"at most {soft}")


def check_ports(ports: Mapping[int, str] | None = None, host: str = "") -> Record:
    """Ports that a head takes, on any address: in use is right on a head and wrong anywhere else."""
    taken = []
    for port, purpose in (PORTS if ports is None else ports).items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                taken.append(f"{port} ({purpose})")
    if taken:
        remedy = "right where a cluster's head runs; otherwise end the other program, or give cluster.start other ports"
        return warn("ports", f"in use: {', '.join(taken)}", remedy)
    return ok("ports", f"{', '.join(str(p) for p in (PORTS if ports is None else ports))} are free")


def check_token(environment: Mapping[str, str] | None = None, *, needed: bool = False) -> Record:
    """The token is a password for running code: there, private, and not switched off.

    Args:
        needed: a cluster is to be reached, so a missing token is a failure.
    """
    environ = os.environ if environment is None else environment
    mode = environ.get(MODE_VARIABLE, "token")
    if mode != "token":
        return fail("token", f"{MODE_VARIABLE}={mode}: everyone who reaches the cluster can run code",
                    f"unset {MODE_VARIABLE}")  # fmt: skip
    if environ.get(TOKEN_VARIABLE):
        return warn("token", f"from the variable {TOKEN_VARIABLE}, which child processes and dumps show",
                    f"keep it in {token_path()} with mode 0600 instead")  # fmt: skip
    path = token_path()
    try:
        found = path.stat()
    except FileNotFoundError:
        if needed:
            return fail("token", f"{path} does not exist", f"scp HEAD:.ray/auth_token {path} && chmod 600 {path}")
        return ok("token", f"none yet: 'python -m cluster.start head' makes {path}")
    except PermissionError as error:
        return fail("token", f"{path}: {error.strerror}", "run as the user who owns the token")
    bits = stat.S_IMODE(found.st_mode)
    if bits & 0o077:
        return fail("token", f"{path} has mode {bits:04o}: others on this machine can read it", f"chmod 600 {path}")
    if not found.st_size:
        return fail("token", f"{path} is empty", f"rm {path}, and copy the head's token, or start a head")
    return ok("token", f"{path}, mode {bits:04o}")


def check_address(resolve: Callable[[str], str] = socket.gethostbyname) -> Record:
    """A host whose name means its own loopback: gloo and NCCL go there where nothing names an interface.

    Runs on several nodes name that of the node's address, which may be on another network than the fast one.
    """
    host = socket.gethostname()
    try:
        address = resolve(host)
    except OSError:
        return warn("host name", f"{host} has no address", "add it to /etc/hosts, or set GLOO_SOCKET_IFNAME")
    if address.startswith("127."):
        remedy = (
            "runs on several nodes take the interface of the node's address; for another one set "
            "placement.network_interface, or GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME where the nodes are started"
        )
        return warn("host name", f"{host} means {address}, which other nodes cannot reach", remedy)
    return ok("host name", f"{host} is {address}")


def interfaces_of(address: str) -> list[str]:
    """Names of this machine's network interfaces that have an address."""
    return [name for name, entries in psutil.net_if_addrs().items() if any(e.address == address for e in entries)]


def _existing(path: Path) -> Path:
    """The path, or the nearest parent that is there."""
    return next((p for p in (path.absolute(), *path.absolute().parents) if p.exists()), Path("/"))


def summary(records: Sequence[Record]) -> str:
    """How many of each kind."""
    counts = {status: sum(r.status == status for r in records) for status in ("ok", "warn", "fail")}
    return f"{counts['ok']} ok, {counts['warn']} warning(s), {counts['fail']} failure(s)"
