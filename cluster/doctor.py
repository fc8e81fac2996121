"""``rlhf doctor``: looks at this machine, and at a cluster, before a run does."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.text import Text

from cluster.checks import files, machine, processes, software
from cluster.checks.record import Record
from rlhf.telemetry.console import get_console, print_header

Check = Callable[[], Record | list[Record]]
EXIT_GOOD, EXIT_FAILED = 0, 2
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}

DESCRIPTION = "Checks this machine, and a cluster with --address, before a run does: one line each, with the remedy."
EPILOG = """\
examples:
  rlhf doctor                                        this machine, about ten seconds
  rlhf doctor --run-dir runs/ppo                     and whether a run can be written there
  rlhf doctor --address http://127.0.0.1:8265        and every node: versions, clocks, gloo or nccl between them
  rlhf doctor --address auto --run-dir /shared/runs  on a node of the cluster itself

exit codes: 0 good (warnings included), 2 something failed
"""


def main(rest: list[str]) -> int:
    """Runs ``rlhf doctor``."""
    args = _parser().parse_args(rest)
    started = time.perf_counter()
    elsewhere = str(args.address or "").startswith(("http://", "https://"))  # the nodes are asked, this machine is none
    run_dir = Path(args.run_dir) if args.run_dir and not elsewhere else None
    records = diagnose(local_checks(run_dir, address=args.address, quick=args.quick))
    if args.address:
        from cluster.checks.nodes import check_cluster

        records += check_cluster(args.address, args.run_dir)
    failed = any(record.status == "fail" for record in records)
    if args.json:
        get_console().print(json.dumps([r.as_dict() for r in records], indent=2), markup=False, soft_wrap=True)
    else:
        show(records, time.perf_counter() - started)
    return EXIT_FAILED if failed else EXIT_GOOD


def local_checks(run_dir: Path | None, *, address: str | None = None, quick: bool = False) -> list[Check]:
    """The checks of this machine, slow ones first: they run side by side.

    Args:
        address: a cluster that will be reached, so that a token is needed.
        quick: leave out what starts processes.
    """
    slow: list[Check] = [
        processes.check_object_store,
        _accelerators_and_collectives,
    ]
    fast: list[Check] = [
        software.check_python,
        software.check_packages,
        software.check_constraints,
        software.check_operations,
        machine.check_shared_memory,
        lambda: machine.check_disk(run_dir or Path.cwd()),
        lambda: machine.check_disk(tempfile.gettempdir(), "temporary disk"),
        machine.check_memory,
        machine.check_open_files,
        machine.check_ports,
        machine.check_address,
        lambda: machine.check_token(needed=bool(address) and address != "auto"),
        lambda: files.check_ray_sessions(Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray"),
    ]
    if run_dir is not None:
        fast += [
            lambda: files.check_writable(run_dir),
            lambda: files.check_lock(run_dir),
            lambda: files.check_leftovers(run_dir),
        ]
    return fast if quick else [*fast, *slow]


def diagnose(checks: Sequence[Check]) -> list[Record]:
    """Runs checks side by side; records in the order of the checks."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        found = [future.result() for future in [pool.submit(check) for check in checks]]
    return [record for one in found for record in (one if isinstance(one, list) else [one])]


def _accelerators_and_collectives() -> list[Record]:
    found, said = processes.run_probe(["accelerators"])
    records = [processes.check_accelerators(found, said)]
    if found is not None:
        records.append(processes.check_collective("gloo"))
        if found["names"]:
            records.append(processes.check_collective("nccl", ranks=len(found["names"])))
    return records


def show(records: Sequence[Record], seconds: float) -> None:
    """One line per check, with its remedy below."""
    console = get_console()
    print_header("Doctor", f"{machine.summary(records)} in {seconds:.1f} s")
    width = max(len(record.name) for record in records)
    for record in records:
        line = Text(f"{record.status:<4} ", style=STYLES[record.status])
        line.append(f"{record.name:<{width}}  ", style="bold default")
        line.append(record.detail, style="default")
        if record.remedy:
            line.append(f" → {record.remedy}", style="cyan")
        console.print(line, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlhf doctor", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--address", metavar="URL", help="a cluster's dashboard, or 'auto' on one of its nodes")
    parser.add_argument("--run-dir", metavar="DIR", help="where runs will be written: here, or with a URL on the nodes")
    parser.add_argument("--quick", action="store_true", help="leave out what starts processes (about ten seconds)")
    parser.add_argument("--json", action="store_true", help="print the records as JSON")
    return parser
