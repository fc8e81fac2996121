"""A real PostgreSQL server on a socket of its own, started here and ended here by its own pid."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

INSTALLER = Path(__file__).parents[2] / "scripts" / "ensure_system_packages.sh"


def _binaries() -> Path:
    """Directory of the newest PostgreSQL server, installed first when missing."""
    subprocess.run(["sh", str(INSTALLER)], check=True, capture_output=True, timeout=300)
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name))
    return found[-1] if found else Path(str(shutil.which("initdb"))).parent


def _as_server_user() -> dict[str, Any]:
    """The server refuses to run as root: give it the identity of its own system user."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


@contextmanager
def running_server(*, fsync: bool = False) -> Iterator[str]:
    """URL of a fresh server. Tests kill its clients, never the server or its machine, so they may leave fsync off."""
    home = Path(tempfile.mkdtemp(prefix="prefs-pg-"))
    identity = _as_server_user()
    if identity:
        os.chown(home, identity["user"], identity["group"])
    binaries, data = _binaries(), home / "data"
    setup = [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"]
    subprocess.run(setup, check=True, capture_output=True, cwd=home, **identity)
    settings = {"listen_addresses": "", "max_connections": "60", "deadlock_timeout": "200ms",
                "fsync": "on" if fsync else "off"}  # fmt: skip
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    log = (home / "log").open("wb")
    server = subprocess.Popen(
        [binaries / "postgres", "-D", data, "-k", home, *options], stdout=log, stderr=log, cwd=home, **identity
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(host=str(home), user="postgres", dbname="postgres").close()
                break
            except psycopg.OperationalError:
                if time.monotonic() > deadline or server.poll() is not None:
                    raise RuntimeError((home / "log").read_text()) from None
                time.sleep(0.05)
        yield f"postgresql://postgres@/postgres?host={home}"
    finally:
        # Fast shutdown: ends sessions that a failed test left open.
        server.send_signal(signal.SIGINT)
        server.wait(timeout=30)
        log.close()
        shutil.rmtree(home, ignore_errors=True)


def store_places(server: str) -> Callable[[], str]:
    """Makes an empty place for a store on a server, as often as called."""
    numbers = itertools.count()

    def make() -> str:
        # A schema of its own is as empty as a database of its own, and made in a tenth of the time.
        name = f"store_{next(numbers)}"
        with psycopg.connect(server, autocommit=True) as admin:
            admin.execute(f"CREATE SCHEMA {name}")
        return f"{server}&options=-csearch_path%3D{name}"

    return make
