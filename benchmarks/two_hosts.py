"""Faults and repetition on two real hosts (network namespaces): a cut cable, a dead host, many jobs in a row.

Needs the right to make network namespaces. Parts: ``chain``, ``doctor``, ``cut``, ``stop``,
``repeat``, ``kill``; by default all.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import save

from rlhf.models.adapters import read_adapter_file
from tests.support.hosts import BIN, TwoHosts, why_not
from tests.support.project import write_project

LIMIT_SECONDS = 600


class Job:
    """A submission that runs while faults happen."""

    def __init__(self, hosts: TwoHosts, project: Path, *words: str) -> None:
        command = [str(BIN / "rlhf"), "submit", *words, "--address", hosts.dashboard]
        self.log = project / f"{words[words.index('--id') + 1]}.out"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", hosts.space("client"), *command],
                cwd=project, env=hosts.environment, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def wait(self) -> tuple[int | None, float]:
        """(exit code or None when it hangs, seconds waited)."""
        started = time.monotonic()
        try:
            return self.process.wait(LIMIT_SECONDS), time.monotonic() - started
        except subprocess.TimeoutExpired:
            self.process.kill()
            return None, time.monotonic() - started

    def told(self) -> str:
        return self.log.read_text("utf-8")


def wait_for_rows(job: Job, run: Path, count: int) -> int:
    """Waits until a run has written so many rows of metrics."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        path = run / "metrics.jsonl"
        found = len(path.read_text("utf-8").splitlines()) if path.is_file() else 0
        if found >= count:
            return found
        if job.process.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"{run} came to no step {count}:\n{job.told()}")


def chain(hosts: TwoHosts, project: Path, strategy: list[str], name: str) -> dict[str, float]:
    """The whole loop into runs/NAME-STAGE; seconds per job."""
    seconds = {}
    for stage in ("sft", "reward", "ppo"):
        own = [*strategy]
        if stage != "sft":
            own.append(f"model.name=runs/{name}-sft")
        if stage == "ppo":
            own.append(f"scores=[{{kind: reward_model, run: runs/{name}-reward}}]")
            own.append("placement.rollout_labels=[host=first]" if "PACK" in strategy[0] else "seed=0")
        started = time.monotonic()
        done = hosts.rlhf("submit", stage, "--config", f"{stage}.yaml", "--id", f"{name}-{stage}", *own,
                          cwd=project, timeout=LIMIT_SECONDS)  # fmt: skip
        seconds[stage] = round(time.monotonic() - started, 1)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
    return seconds


def equal_chains(hosts: TwoHosts, project: Path) -> dict[str, Any]:
    """SFT, reward and PPO on two hosts, and again on one: every adapter's tensors compared."""
    two = chain(hosts, project, ["placement.strategy=STRICT_SPREAD"], "two")
    one = chain(hosts, project, ["placement.strategy=PACK", "placement.rank_labels=[host=first]"], "one")
    equal, addresses = {}, {}
    for stage in ("sft", "reward", "ppo"):
        a, b = (read_adapter_file(project / "runs" / f"{name}-{stage}" / "adapter")[0] for name in ("one", "two"))
        equal[stage] = a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)
        log = (project / "runs" / f"two-{stage}" / "logs" / "driver-0.log").read_text("utf-8")
        addresses[stage] = sorted(set(re.findall(r"\w+ \d on ([\d.]+), pid", log)))
    return {"seconds_two_hosts": two, "seconds_one_host": one, "equal": equal, "addresses": addresses}


def cut_cable(hosts: TwoHosts, project: Path, seconds: float = 20.0) -> dict[str, Any]:
    """Cuts the second host off in mid-step; the job must go on afterwards or end with an error within its bounds."""
    job = Job(hosts, project, "ppo", "--config", "ppo.yaml", "--id", "cut", "num_steps=12",
              "placement.call_timeout_seconds=90", "placement.collective_timeout_seconds=60")  # fmt: skip
    at = wait_for_rows(job, project / "runs/cut", 2)
    hosts.link("second", "down")
    time.sleep(seconds)
    hosts.link("second", "up")
    mended = len((project / "runs/cut/metrics.jsonl").read_text("utf-8").splitlines())
    since = time.monotonic()
    with suppress(RuntimeError):  # it may end with an error instead
        wait_for_rows(job, project / "runs/cut", mended + 1)
    first = time.monotonic() - since
    code, waited = job.wait()
    steps = len((project / "runs/cut/metrics.jsonl").read_text("utf-8").splitlines())
    return {
        "cut_seconds": seconds, "step_at_cut": at, "steps_when_mended": mended, "exit_code": code,
        "outcome": "went on" if code == 0 else "hung" if code is None else "ended with an error",
        "seconds_to_next_step": round(first, 1),
        "seconds_to_end": round(first + waited, 1), "steps_done": steps, "last_words": _error(job.told()),
    }  # fmt: skip


def stop_and_resume(hosts: TwoHosts, project: Path) -> dict[str, Any]:
    """``rlhf jobs stop`` in mid-run, then the same submission again; compared with the run whose cable was cut."""
    words = ["ppo", "--config", "ppo.yaml", "--id", "stopped", "num_steps=12"]
    job = Job(hosts, project, *words)
    at = wait_for_rows(job, project / "runs/stopped", 3)
    started = time.monotonic()
    hosts.rlhf("jobs", "stop", "stopped", cwd=project)
    stopped = time.monotonic() - started
    code, _ = job.wait()
    done = hosts.rlhf("submit", *words, cwd=project, timeout=LIMIT_SECONDS)
    rows = [json.loads(line) for line in (project / "runs/stopped/metrics.jsonl").read_text("utf-8").splitlines()]
    result = {
        "rows_at_stop": at, "seconds_to_stop": round(stopped, 1), "exit_code_of_stopped": code,
        "exit_code_of_next": done.returncode, "next_attempt": re.findall(r"submitted as (\S+?),", done.stdout),
        "steps": [row["step"] for row in rows],
    }  # fmt: skip
    if done.returncode == 0 and (project / "runs/cut/summary.json").is_file():
        a, b = (read_adapter_file(project / "runs" / name / "adapter")[0] for name in ("cut", "stopped"))
        result["equals_the_run_whose_cable_was_cut"] = all(a[key].equal(b[key]) for key in a)
    return result | ({} if done.returncode == 0 else {"last_words": _error(done.stdout)})


def kill_host(hosts: TwoHosts, project: Path) -> dict[str, Any]:
    """SIGKILL to every process of the second host in mid-step; the job must end, and a new attempt be refused."""
    job = Job(hosts, project, "ppo", "--config", "ppo.yaml", "--id", "killed", "num_steps=200",
              "placement.call_timeout_seconds=90", "placement.collective_timeout_seconds=60")  # fmt: skip
    at = wait_for_rows(job, project / "runs/killed", 2)
    hosts.kill("second")
    code, waited = job.wait()
    started = time.monotonic()
    again = hosts.rlhf("submit", "ppo", "--config", "ppo.yaml", "--id", "killed", "num_steps=200", cwd=project)
    return {
        "step_at_kill": at, "exit_code": code, "outcome": "hung" if code is None else "ended",
        "seconds_to_end": round(waited, 1), "last_words": _error(job.told()),
        "next_attempt": {"exit_code": again.returncode, "seconds": round(time.monotonic() - started, 1),
                         "last_words": _error(again.stdout)},
        "actors_left": len(hosts.living("actors")), "groups_left": len(hosts.living("placement_groups")),
    }  # fmt: skip


def repeat(hosts: TwoHosts, project: Path, count: int) -> dict[str, Any]:
    """Many jobs in a row; what is there afterwards that was not there before."""

    def kinds() -> Counter[str]:
        lines = [line for host in ("first", "second") for line in hosts.commands(host)]
        return Counter(" ".join(line.split()[:3])[:80] for line in lines if not line.startswith("ray::IDLE"))

    before, seconds, codes = kinds(), [], []
    shared_memory, files = set(Path("/dev/shm").iterdir()), set(hosts.temporary.iterdir())
    for number in range(count):
        started = time.monotonic()
        done = hosts.rlhf("submit", "sft", "--config", "sft.yaml", "--id", f"row-{number:02d}", "max_steps=1",
                          cwd=project)  # fmt: skip
        seconds.append(round(time.monotonic() - started, 1))
        codes.append(done.returncode)
    deadline = time.monotonic() + 30
    while kinds() - before and time.monotonic() < deadline:
        time.sleep(0.5)
    return {
        "submissions": count, "exit_codes": dict(Counter(codes)), "seconds_each": seconds,
        "processes_left": dict(kinds() - before), "actors_left": len(hosts.living("actors")),
        "placement_groups_left": len(hosts.living("placement_groups")),
        "temporary_left": sorted(path.name for path in set(hosts.temporary.iterdir()) - files),
        "shared_memory_new": len(set(Path("/dev/shm").iterdir()) - shared_memory),
    }  # fmt: skip


def doctor(hosts: TwoHosts, project: Path) -> dict[str, Any]:
    """``rlhf doctor`` asked for from a third place, through the dashboard: its lines about both hosts."""
    started = time.monotonic()
    done = hosts.rlhf("doctor", "--run-dir", str(project / "runs"), cwd=project, timeout=LIMIT_SECONDS)
    lines = [line.rstrip() for line in done.stdout.splitlines() if line.strip()]
    return {"exit_code": done.returncode, "seconds": round(time.monotonic() - started, 1), "lines": lines}


def _error(text: str) -> str:
    found = re.findall(r"\w*Error: [^\n]*", text)
    return found[-1][:300] if found else text.strip().splitlines()[-1][:300]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["chain", "doctor", "cut", "stop", "repeat", "kill"])
    parser.add_argument("--submissions", type=int, default=20)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    reason = why_not()
    if reason:
        raise SystemExit(reason)
    hosts, result = TwoHosts(), {}
    try:
        started = time.monotonic()
        hosts.start()
        result["cluster_start_seconds"] = round(time.monotonic() - started, 1)
        project = write_project(hosts.folder / "project", strategy="STRICT_SPREAD")
        if "chain" not in args.parts and {"cut", "stop", "kill"} & set(args.parts):
            chain(hosts, project, ["placement.strategy=STRICT_SPREAD"], "two")
        for stage in ("sft", "reward"):
            (project / "runs" / stage).parent.mkdir(exist_ok=True)
            (project / "runs" / stage).symlink_to(f"two-{stage}")
        parts = {
            "chain": lambda: equal_chains(hosts, project),
            "doctor": lambda: doctor(hosts, project),
            "cut": lambda: cut_cable(hosts, project),
            "stop": lambda: stop_and_resume(hosts, project),
            "repeat": lambda: repeat(hosts, project, args.submissions),
            "kill": lambda: kill_host(hosts, project),
        }
        for name in parts:  # the dead host comes last
            if name in args.parts:
                result[name] = parts[name]()
                print(name, result[name], flush=True)
    finally:
        hosts.close()
    if not args.no_save:
        save("two_hosts" if set(parts) <= set(args.parts) else "two_hosts_" + "_".join(sorted(args.parts)), result)


if __name__ == "__main__":
    main()
