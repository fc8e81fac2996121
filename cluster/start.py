"""``python -m cluster.start head | worker``: a Ray node that nobody joins without the token.

A thin wrapper over ``ray start``; what follows ``--`` is handed to it unchanged.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from cluster.auth import enable_token_auth, require_token_mode
from rlhf.config.ray_token import MODE_VARIABLE, create_token, fix_token_mode, token_path
from rlhf.errors import ConfigError, RlhfError
from rlhf.telemetry.console import get_console, print_next_commands

JOIN = re.compile(r"--address='([^']+)'")
WORKER_PORTS = range(10002, 20000)
STOPS = (signal.SIGTERM, signal.SIGINT)

EPILOG = """\
On a shared network everybody who reaches the dashboard's port and has the token can run code, and the token travels
unencrypted: leave the dashboard on the loopback and reach it through ssh, or say that the network is yours alone.

examples:
  python -m cluster.start head
  mkdir -p -m 700 ~/.ray && scp -p HEAD:.ray/auth_token ~/.ray/auth_token
  python -m cluster.start worker --address HEAD:6379
  python -m cluster.start head --dashboard-host 10.0.0.5 --i-am-on-a-private-network -- --num-cpus=4
"""


def main(argv: list[str] | None = None) -> int:
    """Starts a node; the exit code is that of ``ray start``, or 2 when it is refused."""
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    args = build_parser().parse_args(words[:cut])
    try:
        return args.run(args, words[cut + 1 :])
    except RlhfError as error:
        get_console().print(f"{type(error).__name__}: {error}", markup=False, soft_wrap=True)
        return error.exit_code


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.start",
        description="Start a node of a Ray cluster, with token authentication.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(metavar="head | worker", required=True)
    head = actions.add_parser("head", help="the first node; makes the token when there is none")
    head.add_argument("--port", type=int, default=6379, help="where workers join (default: %(default)s)")
    head.add_argument("--dashboard-host", default="127.0.0.1", metavar="ADDRESS", help="default: the loopback")
    head.add_argument("--dashboard-port", type=int, default=8265)
    head.add_argument("--i-am-on-a-private-network", action="store_true",
                      help="allow the dashboard on an address that others can reach, unencrypted")  # fmt: skip
    head.set_defaults(run=_head)
    worker = actions.add_parser("worker", help="joins a head; needs the head's token")
    worker.add_argument("--address", required=True, metavar="HEAD:PORT")
    worker.set_defaults(run=_worker)
    for action in (head, worker):
        action.add_argument("--node-address", metavar="ADDRESS", help="this node's address within the cluster")
        action.add_argument("--label", action="append", default=[], metavar="KEY=VALUE",
                            help="for rank_, rollout_, scorer_ and critic_labels of placement")  # fmt: skip
        action.add_argument("--block", action="store_true", help="stay in the foreground, end with the node")
    return parser


def head_command(args: argparse.Namespace, extra: list[str]) -> list[str]:
    """The ``ray start`` of a head.

    Raises:
        ConfigError: the dashboard would listen where strangers may be.
    """
    if not _is_loopback(args.dashboard_host) and not args.i_am_on_a_private_network:
        raise ConfigError(
            f"--dashboard-host {args.dashboard_host} listens beyond this machine without encryption, and a job is "
            "code: leave it on 127.0.0.1 and use 'ssh -L 8265:127.0.0.1:8265', or add --i-am-on-a-private-network"
        )
    for name, port in (("--port", args.port), ("--dashboard-port", args.dashboard_port)):
        if port in WORKER_PORTS and not any(word.startswith("--min-worker-port") for word in extra):
            raise ConfigError(
                f"{name} {port} lies among the ports of Ray's workers, {WORKER_PORTS[0]} to {WORKER_PORTS[-1]}: take a "
                "lower one, or move those with -- --min-worker-port=N --max-worker-port=M"
            )
    own = ["--head", f"--port={args.port}", f"--dashboard-host={args.dashboard_host}"]
    return _command([*own, f"--dashboard-port={args.dashboard_port}"], args, extra)


def node_environment() -> dict[str, str]:
    """Environment of a node and, by inheritance, of every job on it."""
    environment = dict(os.environ)
    environment[MODE_VARIABLE] = "token"
    # 'python' in a job's command must be the one that has this package
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    # Ray gives workers the lowest priority; beside any other load two ranks then wait for each other
    environment.setdefault("RAY_worker_niceness", "0")
    # our workers have an environment of their own: none that Ray starts ahead for a job would ever be used
    environment.setdefault("RAY_prestart_worker_first_driver", "0")
    return environment


def _head(args: argparse.Namespace, extra: list[str]) -> int:
    command = head_command(args, extra)
    require_token_mode()
    made = create_token()
    for path in fix_token_mode():
        get_console().print(f"{path}: was open to others, now private", markup=False)
    code, told = _start(command, args.block)
    if code == 0 and not args.block:
        where = args.dashboard_host if not _is_loopback(args.dashboard_host) else "127.0.0.1"
        joined = JOIN.search(told)
        host = joined.group(1) if joined else f"HEAD:{args.port}"
        get_console().print(f"head of a cluster at {host}, token {made} (mode 0600)", markup=False)
        print_next_commands(
            [
                (f"ssh NODE mkdir -p -m 700 .ray && scp -p {made} NODE:.ray/auth_token", "give a node the token"),
                (f"python -m cluster.start worker --address {host}", "then, on that node"),
                (f"rlhf doctor --address http://{where}:{args.dashboard_port}", "check the cluster"),
                (f"rlhf submit sft --config FILE --address http://{where}:{args.dashboard_port}", "run a stage"),
            ]
        )
    return code


def _worker(args: argparse.Namespace, extra: list[str]) -> int:
    enable_token_auth()
    code, _ = _start(_command([f"--address={args.address}"], args, extra), args.block)
    if code != 0:
        get_console().print(
            f"the node did not join {args.address}: is the head up there, and is {token_path()} the head's token?",
            markup=False,
            soft_wrap=True,
        )
    elif not args.block:
        get_console().print(f"joined the cluster at {args.address}", markup=False)
        print_next_commands([("rlhf jobs list --address http://HEAD:8265", "what runs on the cluster")])
    return code


def _command(own: list[str], args: argparse.Namespace, extra: list[str]) -> list[str]:
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *own, "--disable-usage-stats"]
    if args.node_address:
        command.append(f"--node-ip-address={args.node_address}")
    if args.label:
        command.append("--labels=" + ",".join(args.label))
    if args.block:
        command.append("--block")
    return [*command, *extra]


def _start(command: list[str], block: bool) -> tuple[int, str]:
    """(exit code, what Ray told); Ray's own text is shown in the foreground and when it failed."""
    before = os.umask(0o077)  # session files hold logs and sockets: they are this user's
    try:
        if block:
            return foreground(command, node_environment()), ""
        # a file, not a pipe: the node's processes inherit it and would keep a pipe open for ever
        with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
            code = subprocess.run(
                command, env=node_environment(), check=False, stdout=output, stderr=subprocess.STDOUT
            ).returncode
            output.seek(0)
            told = output.read()
    finally:
        os.umask(before)
    if code != 0:
        get_console().print(told, markup=False, soft_wrap=True)
    return code, told


def foreground(command: list[str], environment: dict[str, str]) -> int:
    """Runs a command to its end and hands SIGTERM and SIGINT on to it: a node ends with what started it.

    Returns its exit code as a shell would give it, 128 + signal when a signal ended it.
    """
    process = subprocess.Popen(command, env=environment)
    before = {number: signal.signal(number, lambda got, _: process.send_signal(got)) for number in STOPS}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    sys.exit(main())
