"""Sends the doctor into a cluster and brings its records back."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time

from cluster.auth import enable_token_auth
from cluster.checks.record import Record, fail
from rlhf.config.ray_token import MODE_VARIABLE
from rlhf.errors import ConfigError, RlhfError

MARK = "DOCTOR "
LIMIT_SECONDS = 240.0


def check_cluster(address: str, run_dir: str | None) -> list[Record]:
    """Checks between nodes: as a job behind a dashboard's address, or from here for ``auto``."""
    words = ["-m", "cluster.checks.on_cluster", *(["--run-dir", run_dir] if run_dir else [])]
    try:
        enable_token_auth()
        said = _from_here(words) if address == "auto" else _as_job(address, words)
    except RlhfError as error:
        return [fail("cluster", str(error), "see the address and the token above")]
    return read_records(said)


def read_records(said: str) -> list[Record]:
    """The records within a log."""
    lines = [line for line in said.splitlines() if line.startswith(MARK)]
    if not lines:
        told = " / ".join(line for line in said.strip().splitlines()[-3:])[-400:] or "nothing"
        remedy = "install this package on the nodes (the image must hold it), and look at 'ray status'"
        return [fail("cluster", f"the checks did not finish there; last words: {told}", remedy)]
    return [Record(**fields) for fields in json.loads(lines[-1].removeprefix(MARK))]


def _from_here(words: list[str]) -> str:
    environment = {**os.environ, MODE_VARIABLE: "token"}
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env=environment, start_new_session=True)  # fmt: skip
    try:
        return process.communicate(timeout=LIMIT_SECONDS)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise ConfigError(f"no answer from the cluster within {LIMIT_SECONDS:.0f} s") from None


def _as_job(address: str, words: list[str]) -> str:
    from cluster.client import explained, open_client

    client = open_client(address)
    with explained(client.get_address()):
        job = client.submit_job(entrypoint=shlex.join(["python", *words]))
        deadline = time.monotonic() + LIMIT_SECONDS
        while not client.get_job_status(job).is_terminal():
            if time.monotonic() > deadline:
                client.stop_job(job)
                raise ConfigError(
                    f"the job {job} did not end within {LIMIT_SECONDS:.0f} s: has the cluster a free CPU?"
                )
            time.sleep(0.5)
        said = client.get_job_logs(job)
        client.delete_job(job)
    return said
