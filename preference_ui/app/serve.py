"""``rlhf annotate``: serve the page on which people rank responses."""

from __future__ import annotations

import argparse
import getpass
import logging
import os
import socket
import sys
from pathlib import Path

from preference_ui import projects
from preference_ui.app.address import bind_to, public_address
from preference_ui.app.site import Site
from preference_ui.db import Store, open_store
from preference_ui.errors import ConfigError, RlhfError
from preference_ui.live import LiveOptions, LivePolicy
from preference_ui.people import create_annotator, find_annotator, list_annotators

logger = logging.getLogger(__name__)

PASSWORD_VARIABLE = "RLHF_ADMIN_PASSWORD"

_EPILOG = f"""\
examples:
  rlhf annotate --project helpline
      the default store on http://127.0.0.1:7860; asks for the first admin's name and password
  {PASSWORD_VARIABLE}=... rlhf annotate --project helpline --admin anna
      the first admin without a question
  rlhf annotate --project helpline --store postgresql://db/prefs \\
      --host 0.0.0.0 --public-url https://rank.example.org --proxy-address 10.0.0.2
      behind a proxy that speaks TLS with browsers; wrong passwords count for their own address, not for the proxy's
  rlhf annotate --project helpline --generate runs/quickstart/ppo
      people may also ask this policy themselves and rank its answers

The admin adds other people on the lead's pages. Votes are answered only after they are on disk; stop the server
at any time with Ctrl+C and start it again: logins, tasks and drafts are kept.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlhf annotate",
        description="Serve the page on which people rank responses.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--project", required=True, help="the project to rank in")
    parser.add_argument(
        "--store", help="a SQLite file or a postgresql:// URL (default: $RLHF_STORE, else runs/preferences.sqlite)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default: 7860; 0: any free one)")
    parser.add_argument(
        "--public-url", help="scheme://host[:port] that browsers use, when a proxy stands in front of this server"
    )
    parser.add_argument("--certfile", help="TLS certificate (PEM), to speak https without a proxy")
    parser.add_argument("--keyfile", help="private key of the certificate (PEM)")
    parser.add_argument(
        "--insecure", action="store_true", help="allow plain http to other machines (passwords can be read on the way)"
    )
    parser.add_argument("--admin", metavar="NAME", help="make this the first admin if nobody can log in yet")
    parser.add_argument(
        "--admin-password-file",
        metavar="FILE",
        help=f"read the first admin's password from a file (default: ${PASSWORD_VARIABLE}, else a prompt)",
    )
    parser.add_argument(
        "--proxy-address", metavar="IP", help="believe the client address that a proxy at this address reports"
    )
    live = parser.add_argument_group("live generation (off by default)")
    live.add_argument(
        "--generate", metavar="RUN", help="let people ask this run (or model) and rank its answers at once"
    )
    live.add_argument("--temperature", type=float, default=1.0, help="of the answers (default: 1.0)")
    live.add_argument("--max-response-tokens", type=int, default=256, help="longest answer (default: 256)")
    return parser


def _live_policy(args: argparse.Namespace) -> LivePolicy | None:
    """The policy people may ask; its process starts with the first question, so the page is there at once."""
    if args.generate is None:
        return None
    if not 0 < args.temperature <= 10 or args.max_response_tokens < 1:
        raise ConfigError("--temperature must be above 0 and --max-response-tokens at least 1")
    looks_local = args.generate.startswith((".", "/", "runs/"))
    if looks_local and not Path(args.generate).is_dir():
        raise ConfigError(f"--generate {args.generate!r} is not a directory; give a finished run")
    return LivePolicy(LiveOptions(args.generate, args.temperature, args.max_response_tokens))


def _first_password(args: argparse.Namespace) -> str:
    if args.admin_password_file:
        try:
            return Path(args.admin_password_file).read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as error:
            raise ConfigError(f"--admin-password-file: {error}") from error
    if PASSWORD_VARIABLE in os.environ:
        return os.environ[PASSWORD_VARIABLE]
    if not sys.stdin.isatty():
        raise ConfigError(
            f"the first admin needs a password: set ${PASSWORD_VARIABLE}, give --admin-password-file, or start from "
            "a terminal"
        )
    password = getpass.getpass("Password for the first admin (at least 10 characters): ")
    if getpass.getpass("The same again: ") != password:
        raise ConfigError("the two passwords differ")
    return password


def ensure_admin(store: Store, args: argparse.Namespace) -> None:
    """Make the first admin unless there is one.

    Raises:
        ConfigError: nobody could log in and no name or password is given, or ``--admin`` names somebody else's account.
    """
    if any(p.role == "admin" and p.active for p in list_annotators(store)):
        return
    name = args.admin
    if name is None:
        if not sys.stdin.isatty():
            raise ConfigError("nobody can log in yet: name the first admin with --admin")
        name = input("Name of the first admin: ").strip()
    if find_annotator(store, name) is not None:
        raise ConfigError(f"there is an account {name!r} already that is no admin; choose another name")
    create_annotator(store, name, role="admin", password=_first_password(args), actor="rlhf annotate")


def serve(args: argparse.Namespace) -> int:
    """Open the store, listen, and serve until a signal ends it."""
    if bool(args.certfile) != bool(args.keyfile):
        raise ConfigError("--certfile and --keyfile go together")
    with socket.socket(socket.AF_INET6 if ":" in args.host else socket.AF_INET) as listener:
        bind_to(listener, args.host, args.port)
        listener.listen(256)
        address = public_address(
            args.host,
            listener.getsockname()[1],
            args.public_url,
            scheme="https" if args.certfile else "http",
            insecure=args.insecure,
            what="passwords",
            remedy="give --certfile and --keyfile",
        )
        store = open_store(args.store, create=args.store is None or "://" in args.store or Path(args.store).exists())
        project = projects.get_project(store, args.project)
        policy = _live_policy(args)
        ensure_admin(store, args)
        # Late: gradio takes seconds to import, and a mistyped project should be told at once.
        import uvicorn

        from preference_ui.app.web import build_app

        app = build_app(Site(store, project.name, address), policy)
        config = uvicorn.Config(
            app,
            log_level="warning",
            server_header=False,
            date_header=False,
            ssl_certfile=args.certfile,
            ssl_keyfile=args.keyfile,
            proxy_headers=bool(args.proxy_address),
            forwarded_allow_ips=args.proxy_address,
            # Longer than people pause between two votes: a reused connection must not close under a request.
            timeout_keep_alive=120,
            timeout_graceful_shutdown=5,
            limit_concurrency=1000,
        )
        sys.stdout.write(f"Ranking page of {project.name!r} at {address.url} (store {store.url}); stop with Ctrl+C\n")
        sys.stdout.flush()
        try:
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            if policy is not None:
                policy.close()
    return 0


def main(argv: list[str]) -> int:
    """Entry point of ``rlhf annotate``; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        return serve(args)
    except RlhfError as error:
        sys.stderr.write(f"rlhf annotate: {error}\n")
        return int(getattr(error, "exit_code", 2))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
