"""PPO runs whose workers, ranks and drivers are killed and frozen at named states."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from benchmarks.chaos_common import Row, folder, longest, runtime_and_pool, seconds_since, tiny
from tests.support.chaos_driver import Driver, committed, newest_step
from tests.support.chaos_faults import Faults
from tests.support.chaos_runs import Outcome, chaos_config, differences, outcome_of, run, write_config
from tests.support.runtime import gone

POINTS = ("forward", "reduce", "optimizer", "save")
Tally = dict[str, Any]


def rollout_kills(quick: bool) -> Iterator[list[Row]]:
    """R01: SIGKILL for a rollout worker in mid-generation; same samples once each, same adapter."""
    per_run = 5
    steps = {"num_steps": per_run}
    with folder() as place, runtime_and_pool() as pool:
        base = tiny(place)
        whole = run(chaos_config(base, place / "whole", **steps), pool)
        tally = new_tally()
        for number in range(1 if quick else 4):
            run_dir = place / f"run-{number}"
            for version in range(per_run):
                Faults(run_dir).arm(f"generate-{version}")
            add(tally, whole, run(chaos_config(base, run_dir, **steps), pool, "rollout"), per_run)
            yield [row("R01", "SIGKILL of a rollout worker while it draws", tally)]


def rollout_freezes(quick: bool) -> list[Row]:
    """R02: SIGSTOP for a rollout worker in mid-generation; ended within the bound and replaced."""
    count, bound = (1, 10.0) if quick else (5, 10.0)
    changes = {"num_steps": count, "recovery.generate_timeout_seconds": bound}
    with folder() as place, runtime_and_pool() as pool:
        base = tiny(place)
        whole = run(chaos_config(base, place / "whole", **changes), pool)
        for version in range(count):
            Faults(place / "run").arm(f"generate-{version}", signal.SIGSTOP)
        tally = new_tally()
        found = run(chaos_config(base, place / "run", **changes), pool, "rollout")
        add(tally, whole, found, count)
    waits = [e["detect_seconds"] for e in found.events if e["event"] == "fault_detected"]
    tally["lost"] += sum(wait > bound + 5 for wait in waits)
    tally["details"]["detect_seconds"] = waits
    return [row("R02", "SIGSTOP of a rollout worker while it draws", tally)]


def rank_kills(quick: bool) -> Iterator[list[Row]]:
    """R05: SIGKILL for a training rank in forward, all-reduce, optimizer step and save."""
    changes = {"recovery.max_restarts": 3}
    rows = []
    with folder() as place, runtime_and_pool() as pool:
        base = tiny(place)
        whole = run(chaos_config(base, place / "whole", **changes), pool)
        for point in POINTS:
            tally, run_dir = new_tally(), place / point
            strikes = (2,) if quick else (1, 2, 3)
            for step in strikes:
                Faults(run_dir).arm(f"{point}-{step}-{step % 2}")
            found = run(chaos_config(base, run_dir, **changes), pool, "policy")
            add(tally, whole, found, len(strikes))
            repeated = [step - e["step"] for step, e in zip(strikes, resumes(found), strict=True)]
            tally["lost"] += sum(steps > 1 for steps in repeated)
            rows.append(row("R05", f"SIGKILL of a training rank in {point}", tally))
            yield rows


def rank_freezes(quick: bool) -> list[Row]:
    """R06: SIGSTOP for a training rank; its peers notice within the collective timeout of 5 s."""
    strikes = (2,) if quick else (1, 2, 3)
    changes = {"recovery.max_restarts": 3, "placement.collective_timeout_seconds": 5.0}
    with folder() as place, runtime_and_pool() as pool:
        base = tiny(place)
        whole = run(chaos_config(base, place / "whole", **changes), pool)
        for step in strikes:
            Faults(place / "run").arm(f"reduce-{step}-{step % 2}", signal.SIGSTOP)
        tally = new_tally()
        add(tally, whole, run(chaos_config(base, place / "run", **changes), pool, "policy"), len(strikes))
    return [row("R06", "SIGSTOP of a training rank", tally)]


def driver_kills(quick: bool) -> list[Row]:
    """R09, R10: SIGKILL and SIGTERM for the driver; no orphans, and the same command goes on."""
    kills, rng = (1 if quick else 10), random.Random(7)
    changes = {"num_steps": 2 * kills + 4}  # a driver may get one step further than it was watched
    with folder() as place, ExitStack() as stack:
        base = tiny(place)
        with runtime_and_pool() as pool:
            whole = run(chaos_config(base, place / "whole", **changes), pool)
        run_dir, output = place / "run", place / "output"
        config = write_config(chaos_config(base, run_dir, **changes), place / "config.yaml")
        orphans = died = 0
        slowest = 0.0
        for _ in range(kills):
            target = newest_step(run_dir) + 1
            driver = stack.enter_context(Driver(config, output))
            driver.reaches(lambda target=target: committed(run_dir, target), f"checkpoint {target}")  # type: ignore[misc]
            time.sleep(rng.random() * 0.5)
            family = driver.family()
            died += driver.kill() == -signal.SIGKILL
            began = time.monotonic()
            orphans += not gone(family, within=10)
            slowest = max(slowest, seconds_since(began))
        target = newest_step(run_dir) + 1
        driver = stack.enter_context(Driver(config, output))
        driver.reaches(lambda: committed(run_dir, target), f"checkpoint {target}")
        driver.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        code = driver.wait()
        stopped = seconds_since(began)
        resumed = (code == 3 and Driver(config, output).wait() == 0) or code == 0
        summary = json.loads((run_dir / "summary.json").read_text()) if resumed else {}
        same = bool(resumed) and not differences(whole, outcome_of(run_dir, summary, {}))
    note = "final adapters equal; seconds until the last of its processes was gone"
    ended = int(code == 3)
    return [
        Row("R09", "SIGKILL of the driver", kills, died, died * same, orphans, slowest, note),
        Row("R10", "SIGTERM to the driver", 1, ended, ended * same, 0, stopped, f"exit code {code}"),
    ]


def resumes(found: Outcome) -> list[dict[str, Any]]:
    """Where a run went on."""
    return [e for e in found.events if e["event"] == "resumed"]


def new_tally() -> Tally:
    """Nothing yet."""
    return {"injected": 0, "detected": 0, "recovered": 0, "lost": 0, "longest": None, "details": {}}


def add(tally: Tally, whole: Outcome, found: Outcome, injected: int) -> None:
    """Counts one run: its victims are dead (``run`` sees to that), so what remains is what became of them."""
    differing = differences(whole, found)
    noticed, ended = found.kinds("fault_detected"), found.kinds("fault_resolved")
    tally["injected"] += injected
    tally["detected"] += min(len(noticed), injected)
    tally["recovered"] += min(len(ended), injected) if not differing else 0
    tally["lost"] += len(differing)
    if differing:
        tally["details"].setdefault("differences", []).extend(differing[:20])
    if len(noticed) > injected:
        tally["details"]["detected_beyond_the_injected"] = len(noticed) - injected
    seconds = longest(found.events)
    tally["longest"] = max(tally["longest"] or 0.0, seconds or 0.0)


def row(name: str, fault: str, tally: Tally) -> Row:
    """A tally as a line of the table."""
    note = "metrics to the last digit, adapters, samples and order equal to the run without faults"
    return Row(name, fault, tally["injected"], tally["detected"], tally["recovered"], tally["lost"], tally["longest"],
               note, tally["details"])  # fmt: skip


SECTIONS = {
    "R01": rollout_kills,
    "R02": rollout_freezes,
    "R05": rank_kills,
    "R06": rank_freezes,
    "R09": driver_kills,
}
