"""Checks that need processes of their own: accelerators, collectives, the object store."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from cluster.checks.record import Record, fail, ok, warn

LIMIT_SECONDS = 60.0


def run_probe(words: list[str], environment: Mapping[str, str] | None = None) -> tuple[Any, str]:
    """Runs ``python -m cluster.checks.probe WORDS`` in a session of its own; (its JSON or None, what it said)."""
    command = [sys.executable, "-m", "cluster.checks.probe", *words]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, **(environment or {})},
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None, f"no answer within {LIMIT_SECONDS:.0f} s"
    last = out.strip().splitlines()[-1:] or [""]
    try:
        return json.loads(last[0]), ""
    except ValueError:
        return None, " / ".join((err or out).strip().splitlines()[-2:])[-300:] or f"exit code {process.returncode}"


def check_accelerators(found: Any = None, said: str = "", driver: int | None = None) -> Record:
    """What torch sees against what the driver has.

    Args:
        found: what the probe said, when it has run already.
        driver: GPUs that the driver lists.
    """
    if found is None and not said:
        found, said = run_probe(["accelerators"])
    if found is None:
        return fail("accelerators", f"torch cannot be asked: {said}", "pip install --constraint constraints.txt torch")
    present = _driver_gpus() if driver is None else driver
    names = found["names"]
    if present and not names:
        remedy = "install the CUDA build of torch, and check CUDA_VISIBLE_DEVICES and the driver's version"
        return fail("accelerators", f"the driver has {present} GPU(s), torch {found['torch']} sees none", remedy)
    if len(names) < present:
        return warn("accelerators", f"torch sees {len(names)} of {present} GPUs", "check CUDA_VISIBLE_DEVICES")
    if not names:
        return ok("accelerators", "none: runs on the CPU in float32")
    if not found["bf16"]:
        return warn("accelerators", f"{', '.join(names)}: no bfloat16", "set model.dtype=float32")
    return ok("accelerators", f"{len(names)} x {names[0]}, torch {found['torch']}")


def check_collective(backend: str, ranks: int = 2, environment: Mapping[str, str] | None = None) -> Record:
    """A sum over processes of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found, said = run_probe(["collective", backend, str(ranks), "127.0.0.1", str(port)], environment)
    if found is None:
        variable = "GLOO_SOCKET_IFNAME" if backend == "gloo" else "NCCL_SOCKET_IFNAME (and NCCL_DEBUG=INFO)"
        return fail(
            backend, f"{ranks} processes could not add up: {said}", f"set {variable} to an interface that is up"
        )
    return ok(backend, f"{ranks} processes added up in {found['seconds']:.1f} s")


def check_object_store(environment: Mapping[str, str] | None = None) -> Record:
    """A private Ray runtime starts, and a worker reads 32 MiB that the driver put."""
    found, said = run_probe(["object_store"], environment)
    if found is None:
        return fail("object store", f"Ray did not start or answer: {said}", "see shared memory, disk and token above")
    return ok("object store", f"Ray up in {found['start']:.1f} s, 32 MiB to a worker in {found['read'] * 1e3:.0f} ms")


def _driver_gpus() -> int:
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    try:
        done = subprocess.run([program, "--list-gpus"], capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())
