"""``rlhf board``: a page with all runs, read-only: metrics live, samples, comparisons. Loads no torch."""

from __future__ import annotations

import argparse
import secrets
import socket
import sys
from pathlib import Path

from preference_ui.errors import ConfigError, RlhfError

_EPILOG = """\
examples:
  rlhf board                          the runs below runs/ on http://127.0.0.1:7861
  rlhf board --runs /shared/runs --port 0
  ssh -L 7861:127.0.0.1:7861 HOST     then open the printed link here, while the board runs there

The printed link carries a token that is new at each start: without it nobody reads anything, also not others on this
machine. The page only reads, and shows nothing but the runs below the given directory.
"""


def main(rest: list[str]) -> int:
    """Entry point of ``rlhf board``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rlhf board",
        description="Serve a read-only page with all runs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", default="runs", metavar="DIR", help="the directory with the runs (default: runs)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=7861, help="port to listen on (default: 7861; 0: any free one)")
    parser.add_argument("--public-url", help="scheme://host[:port] that browsers use, when a proxy stands in front")
    parser.add_argument(
        "--insecure", action="store_true", help="allow plain http to other machines (the token can be read on the way)"
    )
    parser.add_argument("--refresh", type=float, default=5.0, metavar="SECONDS", help="pace of the live plots")
    args = parser.parse_args(rest)
    try:
        return _serve(args)
    except RlhfError as error:
        sys.stderr.write(f"rlhf board: {error}\n")
        return int(getattr(error, "exit_code", 2))


def _serve(args: argparse.Namespace) -> int:
    from preference_ui.app.address import bind_to, public_address
    from preference_ui.app.board.site import BoardSite

    root = Path(args.runs)
    if not root.is_dir():
        raise ConfigError(f"--runs {root} is not a directory")
    with socket.socket(socket.AF_INET6 if ":" in args.host else socket.AF_INET) as listener:
        bind_to(listener, args.host, args.port)
        listener.listen(64)
        address = public_address(
            args.host,
            listener.getsockname()[1],
            args.public_url,
            insecure=args.insecure,
            what="the token",
            remedy="leave --host on 127.0.0.1 and use ssh -L",
        )
        site = BoardSite(root.resolve(), address, secrets.token_urlsafe(24))
        # Late: gradio takes seconds to import, and a mistyped directory should be told at once.
        import uvicorn

        from preference_ui.app.board.web import build_app

        app = build_app(site, refresh_seconds=max(1.0, args.refresh))
        config = uvicorn.Config(
            app, log_level="warning", server_header=False, date_header=False, access_log=False, limit_concurrency=200,
            timeout_graceful_shutdown=3,
        )  # fmt: skip
        sys.stdout.write(f"Board of {root} at {site.link}; stop with Ctrl+C\n")
        sys.stdout.flush()
        uvicorn.Server(config).run(sockets=[listener])
    return 0
