"""Seconds from ``rlhf submit`` to the first training step on a warm cluster of this one machine."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import save

from tests.support.project import write_project

BIN = Path(sys.executable).parent


def free_ports() -> tuple[int, int]:
    """Two ports below those of Ray's workers."""
    found = []
    for port in range(8300, 9999):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                found.append(port)
        if len(found) == 2:
            return found[0], found[1]
    raise RuntimeError("no free port")


def measure(project: Path, environment: dict[str, str], address: str, stage: str, name: str) -> dict:
    """Submits one stage and watches for its first row of metrics that belongs to a training step."""
    words = ["submit", stage, "--config", f"{stage}.yaml", "--id", name, "--address", address]
    load, started = os.getloadavg()[0], time.monotonic()
    marks: dict[str, float] = {}
    log = (project / f"{name}.out").open("wb")
    process = subprocess.Popen([str(BIN / "rlhf"), *words], cwd=project, env=environment, stdout=log, stderr=log)
    run = project / "runs" / name
    watched = {"driver_started": run / "config.json", "first_step": run / "metrics.jsonl"}
    while process.poll() is None and "first_step" not in marks:
        for mark, path in watched.items():
            if mark not in marks and path.is_file() and path.stat().st_size:
                marks[mark] = round(time.monotonic() - started, 2)
        time.sleep(0.02)
    code = process.wait(600)
    log.close()
    if code:
        raise RuntimeError((project / f"{name}.out").read_text("utf-8"))
    return {**marks, "whole_job": round(time.monotonic() - started, 2), "load_before": round(load, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rj-", dir="/tmp"))
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / ".ray/auth_token")}
    environment.pop("RAY_ADDRESS", None)
    gcs, dashboard = free_ports()
    command = ["head", "--block", "--port", str(gcs), "--dashboard-port", str(dashboard), "--node-address", "127.0.0.1"]
    command += ["--", "--num-cpus=4", "--object-store-memory=150000000", f"--temp-dir={folder}/t"]
    node = subprocess.Popen([sys.executable, "-m", "cluster.start", *command], cwd=folder, env=environment,
                            stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)  # fmt: skip
    address, result = f"http://127.0.0.1:{dashboard}", {}
    try:
        deadline = time.monotonic() + 120
        while subprocess.run([str(BIN / "rlhf"), "jobs", "list", "--address", address], env=environment, cwd=folder,
                             capture_output=True).returncode:  # fmt: skip
            if time.monotonic() > deadline:
                raise RuntimeError("the cluster did not come up")
            time.sleep(0.5)
        project = write_project(folder / "project", num_rollout_workers=2)
        seconds: dict[str, list[dict[str, Any]]] = {"sft": [], "ppo": []}
        for stage in ("sft", "reward"):  # PPO starts from these; they warm the page cache too
            measure(project, environment, address, stage, stage)
        for number in range(args.repeats):
            seconds["sft"].append(measure(project, environment, address, "sft", f"sft-{number}"))
            seconds["ppo"].append(measure(project, environment, address, "ppo", f"ppo-{number}"))
            print(json.dumps({stage: rows[-1] for stage, rows in seconds.items()}), flush=True)
        medians = {stage: statistics.median(row["first_step"] for row in rows) for stage, rows in seconds.items()}
        result = {"target_seconds": 20, "submit_to_first_step_seconds": seconds, "median_seconds": medians,
                  "note": "PPO writes the figures of its first step when that step is over"}  # fmt: skip
    finally:
        node.terminate()
        node.wait(60)
        shutil.rmtree(folder, ignore_errors=True)
    if not args.no_save:
        save("job_startup", result)


if __name__ == "__main__":
    main()
