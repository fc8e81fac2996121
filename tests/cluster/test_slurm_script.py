"""The Slurm script itself runs, with stand-ins for Slurm's commands and for python."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cluster" / "launch" / "slurm.sh"

PYTHON = """#!/bin/bash
# stands in for python: nodes wait to be ended, the stage saves when it is asked to leave
echo "python $*" >> "$RECORD"
case "$*" in
  *"create_connection"*) exit 0 ;;
  *"cluster.joined"*) if [ "$JOINED" = wait ]; then exec sleep 60; fi; sleep 0.3; exit "$JOINED" ;;
  *"cluster.start worker"*) [ -z "$WORKER_ENDS" ] || exit 1 ;;&
  *"cluster.start"*) sleep 60 & trap 'kill $!; echo "node ended" >> "$RECORD"; exit 0' TERM; wait $! ;;
  *"-m rlhf"*) sleep 60 & trap 'kill $!; sleep 0.3; echo "stage saved" >> "$RECORD"; exit 130' TERM
               echo "stage started" >> "$RECORD"; wait $! ;;
  *) exec "$REAL_PYTHON" "$@" ;;
esac
"""
SRUN = """#!/bin/bash
echo "srun $*" >> "$RECORD"
while [[ "$1" == --* ]]; do shift; done
case "$1" in
  hostname) echo 127.0.1.1 ;;
  getent) [ -n "$ADDRESS" ] || exit 2; echo "$ADDRESS STREAM one" ;;
  *) exec "$@" ;;
esac
"""
SCONTROL = """#!/bin/bash
tr , "\\n" <<< "$3"
"""
ADDRESS = "10.11.12.13"


class Allocation:
    """A job of Slurm: the script, what the stand-ins were called with, and the token's place."""

    def __init__(self, folder: Path, hosts: str = "one,two", **changes: str) -> None:
        tools = folder / "bin"
        tools.mkdir()
        for name, text in (("python", PYTHON), ("srun", SRUN), ("scontrol", SCONTROL)):
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        self.record = folder / "record"
        self.record.touch()
        self.token = folder / ".ray" / "slurm-4711"
        environment = {
            **os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(folder), "RECORD": str(self.record),
            "REAL_PYTHON": sys.executable, "RLHF_PYTHON": str(tools / "python"), "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": hosts, "SLURM_CPUS_PER_TASK": "32",
            "ADDRESS": ADDRESS, "JOINED": "0", "WORKER_ENDS": "", **changes,
        }  # fmt: skip
        for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
            environment.pop(name, None)
        self.script = subprocess.Popen([str(SCRIPT), "ppo", "--config", "x.yaml"], env=environment,
                                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip

    @property
    def told(self) -> str:
        return self.record.read_text()

    def wait_for(self, words: str) -> None:
        deadline = time.monotonic() + 40
        while words not in self.told and time.monotonic() < deadline:
            time.sleep(0.1)
        assert words in self.told

    def end(self) -> tuple[int, str]:
        """(exit code, what it told)."""
        try:
            out, _ = self.script.communicate(timeout=40)
        finally:
            self.script.kill()
        return self.script.returncode, out


def test_every_node_gets_the_token_and_the_stage_may_save(tmp_path: Path) -> None:
    job = Allocation(tmp_path)
    try:
        job.wait_for("stage started")
        assert stat.S_IMODE(job.token.stat().st_mode) == 0o600
        secret = job.token.read_text()
        job.script.send_signal(signal.SIGTERM)
    finally:
        code, out = job.end()
    told = job.told
    assert code == 130, out
    assert "stage saved" in told and told.count("node ended") == 2
    assert not job.token.exists(), "the token ends with the job"
    assert len(secret) >= 32 and secret not in told + out
    assert f"cluster.start worker --address {ADDRESS}:6611" in told
    steps = [line for line in told.splitlines() if line.startswith("srun ") and "cluster.start" in line]
    assert len(steps) == 2 and all("--cpus-per-task=32 " in step for step in steps), "a step may have one CPU else"
    assert f"-m rlhf ppo --config x.yaml placement.ray_address={ADDRESS}:6611" in told
    asked = f"cluster.joined --address {ADDRESS}:6611 one two"
    assert asked in told and told.index(asked) < told.index("-m rlhf ppo"), "a stage needs all nodes"


def test_no_stage_begins_without_all_nodes(tmp_path: Path) -> None:
    job = Allocation(tmp_path, JOINED="2")
    code, out = job.end()
    assert code == 2, out
    assert "-m rlhf" not in job.told and job.told.count("node ended") == 2 and not job.token.exists()


def test_a_node_that_ends_early_is_named(tmp_path: Path) -> None:
    job = Allocation(tmp_path, JOINED="wait", WORKER_ENDS="yes")
    code, out = job.end()
    assert code == 3 and "the node on two ended before the stage began" in out
    assert "-m rlhf" not in job.told and job.told.count("node ended") == 1 and not job.token.exists()


def test_a_job_that_is_ended_while_nodes_join_starts_no_stage(tmp_path: Path) -> None:
    job = Allocation(tmp_path, JOINED="wait")
    try:
        job.wait_for("cluster.joined")
        job.script.send_signal(signal.SIGTERM)
    finally:
        code, out = job.end()
    assert code == 143, out
    assert "-m rlhf" not in job.told and not job.token.exists()


@pytest.mark.parametrize("found", ["127.0.1.1", ""])
def test_an_address_that_other_hosts_cannot_reach_is_refused(tmp_path: Path, found: str) -> None:
    job = Allocation(tmp_path, ADDRESS=found)
    code, out = job.end()
    assert code == 2 and "two knows one by" in out and "set RLHF_HEAD_ADDRESS" in out
    assert "cluster.start" not in job.told and not job.token.exists()


def test_an_address_can_be_given(tmp_path: Path) -> None:
    job = Allocation(tmp_path, ADDRESS="127.0.1.1", RLHF_HEAD_ADDRESS="10.0.0.7", JOINED="2")
    assert job.end()[0] == 2 and "cluster.start head --node-address 10.0.0.7 " in job.told


def test_one_host_alone_may_be_the_loopback(tmp_path: Path) -> None:
    job = Allocation(tmp_path, hosts="one", JOINED="2")
    assert job.end()[0] == 2
    assert "cluster.start head --node-address 127.0.1.1 " in job.told and "cluster.start worker" not in job.told


def test_it_says_how_it_is_used() -> None:
    done = subprocess.run([str(SCRIPT)], capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 2 and "usage: sbatch" in done.stderr
