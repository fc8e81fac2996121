"""``rlhf jobs list | logs | stop``: what runs on a cluster."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from cluster.auth import enable_token_auth
from rlhf.errors import ConfigError
from rlhf.telemetry.console import get_console, print_table

if TYPE_CHECKING:
    from cluster.client import Attempt, BoundedClient

EPILOG = """\
ID is a job's submission id, or a run's name for its latest attempt.

stop sends SIGTERM to the job's driver, which finishes its step, saves and leaves; after the grace that the job was
submitted with (rlhf submit --stop-grace-seconds, RAY_JOB_STOP_WAIT_TIME_S for 'ray job submit') it is killed.
"""


def main(rest: list[str]) -> int:
    """``rlhf jobs``; the exit code of ``logs`` is the followed job's."""
    args = build_parser().parse_args(rest)
    if not getattr(args, "timeout_seconds", 0.0) >= 0:
        raise ConfigError(f"--timeout-seconds {args.timeout_seconds:g} must be at least 0")
    enable_token_auth()
    from cluster.client import open_client

    return args.run(open_client(args.address), args)


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="rlhf jobs",
        description="List, follow and stop the jobs of a Ray cluster.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="all jobs, latest last")
    logs = actions.add_parser("logs", help="a job's log, followed to its end")
    stop = actions.add_parser("stop", help="finish the step, save, stop")
    for action, run in ((listing, _list), (logs, _logs), (stop, _stop)):
        action.add_argument("--address", metavar="URL", help="the head's dashboard, e.g. http://HEAD:8265; default: "
                            "RAY_API_SERVER_ADDRESS, an http RAY_ADDRESS, or http://127.0.0.1:8265")  # fmt: skip
        action.set_defaults(run=run)
    for action in (logs, stop):
        action.add_argument("id", metavar="ID", help="a job's submission id, or a run's name for its latest attempt")
    logs.add_argument("--no-follow", action="store_true", help="print what there is and leave")
    stop.add_argument("--no-wait", action="store_true", help="do not wait until it has ended")
    stop.add_argument("--timeout-seconds", type=float, default=600.0, help="how long to wait (default: %(default)g)")
    return parser


def _list(client: BoundedClient, args: argparse.Namespace) -> int:
    from cluster.client import attempts

    found = attempts(client)
    rows = [(a.submission_id, a.run, a.number, a.status, _clock(a), _stage(a)) for a in found]
    if not rows:
        get_console().print("no jobs")
        return 0
    print_table(f"Jobs of {client.get_address()}", rows, ("job", "run", "attempt", "status", "for", "stage"))
    return 0


def _logs(client: BoundedClient, args: argparse.Namespace) -> int:
    from cluster.client import explained
    from cluster.follow import follow

    attempt = latest(client, args.id)
    if not args.no_follow:
        return follow(client, attempt.submission_id)
    with explained(client.get_address()):
        text = client.get_job_logs(attempt.submission_id)
    get_console().print(text, markup=False, soft_wrap=True, end="")
    return 0


def _stop(client: BoundedClient, args: argparse.Namespace) -> int:
    from cluster.client import explained
    from cluster.follow import wait_for_end

    attempt = latest(client, args.id)
    console = get_console()
    if not attempt.live:
        console.print(f"{attempt.submission_id} has ended: {attempt.status}", markup=False)
        return 0
    with explained(client.get_address()):
        client.stop_job(attempt.submission_id)
    console.print(f"{attempt.submission_id}: asked to stop", markup=False)
    if args.no_wait:
        return 0
    started = time.monotonic()
    ended = wait_for_end(client, attempt.submission_id, limit_seconds=args.timeout_seconds)
    console.print(f"{ended.submission_id}: {ended.status} after {time.monotonic() - started:.0f} s", markup=False)
    return 0


def latest(client: BoundedClient, name: str) -> Attempt:
    """The job with this submission id, or the latest attempt of the run with this name.

    Raises:
        ConfigError: there is none; the message lists what there is.
    """
    from cluster.client import attempts

    found = attempts(client)
    # a first attempt has the run's own name: the run is meant, as in 'rlhf submit'
    of_run = [a for a in found if a.run == name]
    exact = [a for a in found if a.submission_id == name]
    if of_run or exact:
        return (of_run or exact)[-1]
    known = ", ".join(a.submission_id for a in found[-10:]) or "none"
    raise ConfigError(f"no job or run {name!r}; the latest jobs: {known}")


def _clock(attempt: Attempt) -> str:
    if attempt.started is None:
        return ""
    seconds = (attempt.ended or time.time()) - attempt.started
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _stage(attempt: Attempt) -> str:
    return attempt.metadata.get("stage", "")
