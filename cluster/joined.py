"""``python -m cluster.joined --address HEAD:PORT HOST ...``: waits until all hosts are in the cluster. Imports ray.

For scripts that start nodes in the background: a stage that starts earlier is refused what it asks for, or sees only
the nodes that were quickest.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable

from cluster.auth import enable_token_auth
from rlhf.errors import ConfigError, RlhfError
from rlhf.telemetry.console import get_console

POLL_SECONDS = 1.0
JOIN_SECONDS = 600.0
"""Many nodes at once read one file system while they start."""


def main(words: list[str] | None = None) -> int:
    """Waits; 0 when all have joined, 2 when not."""
    args = build_parser().parse_args(words)
    try:
        enable_token_auth()
        import ray
        from ray.exceptions import RayError

        try:
            ray.init(address=args.address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
        except (OSError, RuntimeError, RayError) as error:
            raise ConfigError(f"the head at {args.address} cannot be asked: {str(error).splitlines()[0]}") from None
        try:
            wait_until_joined(args.hosts, lambda: _alive(ray.nodes()), args.timeout_seconds)
        finally:
            ray.shutdown()
    except RlhfError as error:
        get_console().print(f"{type(error).__name__}: {error}", markup=False, soft_wrap=True)
        return error.exit_code
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.joined",
        description="Wait until a node has joined for every host; run it on a node of the cluster.",
    )
    add = parser.add_argument
    add("hosts", nargs="+", metavar="HOST", help="names of all hosts, the head's too")
    add("--address", required=True, metavar="HEAD:PORT")
    add("--timeout-seconds", type=float, default=JOIN_SECONDS, metavar="N", help="default: %(default)g")
    return parser


def wait_until_joined(hosts: list[str], alive: Callable[[], list[str]], limit_seconds: float = JOIN_SECONDS) -> None:
    """Waits until as many nodes are alive as there are hosts, and says how far it is.

    Args:
        alive: host names of the nodes that are alive now.

    Raises:
        ConfigError: some are missing after ``limit_seconds``; the message names them.
    """
    console, deadline, said = get_console(), time.monotonic() + limit_seconds, -1
    while True:
        joined = alive()
        if len(joined) != said:
            console.print(f"{len(joined)} of {len(hosts)} node(s) in the cluster", markup=False)
            said = len(joined)
        if len(joined) >= len(hosts):
            return
        if time.monotonic() > deadline:
            raise ConfigError(
                f"{len(joined)} of {len(hosts)} nodes have joined within {limit_seconds:.0f} s; missing: "
                f"{', '.join(missing(hosts, joined))}. Its own log says why: another version of Ray or Python, a token "
                "that is not the head's, or ports between the hosts that are closed"
            )
        time.sleep(POLL_SECONDS)


def missing(hosts: list[str], joined: list[str]) -> list[str]:
    """Hosts without a node; a scheduler's name and the host's own may differ in their domain."""
    short = {name.partition(".")[0] for name in joined}
    return [host for host in hosts if host.partition(".")[0] not in short]


def _alive(nodes: list[dict[str, object]]) -> list[str]:
    return [str(node["NodeManagerHostname"]) for node in nodes if node["Alive"]]


if __name__ == "__main__":
    sys.exit(main())
