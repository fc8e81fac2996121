"""Two hosts and a client on one computer: network namespaces on a switch of their own, one Ray node per host.

Everything is made for one use and taken away again: namespaces, addresses, token, session directory. What is ended is
found by its namespace, never by its name.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DASHBOARD_PORT, GCS_PORT = 8265, 6379
HOSTS = ("first", "second", "client")


def why_not() -> str | None:
    """Why this user cannot make network namespaces here; None when possible."""
    if shutil.which("ip") is None:
        return "two hosts need iproute2 (the command ip)"
    name = f"rlhf-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"two hosts need the right to make network namespaces: {made.stderr.strip()}"
    # an address inside is another right than the namespace itself
    link = subprocess.run(["ip", "-n", name, "link", "add", "probe0", "type", "veth", "peer", "name", "probe1"],
                          capture_output=True, text=True)  # fmt: skip
    subprocess.run(["ip", "netns", "del", name], check=True)
    return f"two hosts need virtual network links: {link.stderr.strip()}" if link.returncode else None


@dataclass
class TwoHosts:
    """A running cluster of two hosts; ``close`` leaves nothing behind."""

    num_cpus: int = 4
    store_bytes: int = 150_000_000
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="rh-", dir="/tmp")))
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._tag = f"rh{os.getpid() % 100_000}"
        self._net = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"

    def space(self, host: str) -> str:
        return f"{self._tag}-{host}"

    def address(self, host: str) -> str:
        return f"{self._net}.{HOSTS.index(host) + 1}"

    @property
    def dashboard(self) -> str:
        return f"http://{self.address('first')}:{DASHBOARD_PORT}"

    @property
    def temporary(self) -> Path:
        """The temporary directory of everything that runs on the hosts."""
        return self.folder / "tmp"

    def start(self) -> TwoHosts:
        """Builds the network and starts both nodes."""
        ip("netns", "add", self.space("switch"))
        ip("-n", self.space("switch"), "link", "add", "br0", "type", "bridge")
        ip("-n", self.space("switch"), "link", "set", "br0", "up")
        for number, host in enumerate(HOSTS):
            space, port = self.space(host), f"p{number}"
            ip("netns", "add", space)
            ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", self.space("switch"))
            ip("-n", self.space("switch"), "link", "set", port, "master", "br0", "up")
            ip("-n", space, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "link", "set", "lo", "up")
        kept = ("PATH", "LANG", "TORCH_EXTENSIONS_DIR", "HF_HUB_OFFLINE", "LD_LIBRARY_PATH")
        self.environment = {name: os.environ[name] for name in kept if name in os.environ} | {
            "HOME": str(self.folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / ".ray" / "auth_token"),
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.temporary),
        }
        self.temporary.mkdir()
        common = ["--block", "--node-address"]
        private = ["--dashboard-host", self.address("first"), "--i-am-on-a-private-network"]
        extra = ["--", f"--num-cpus={self.num_cpus}", f"--object-store-memory={self.store_bytes}"]
        self._node(
            "first",
            [
                "head",
                *private,
                *common,
                self.address("first"),
                "--label",
                "host=first",
                *extra,
                f"--temp-dir={self.folder}/t",
            ],
        )
        self._until(lambda: self.api("/api/version") is not None, 60)
        gcs = f"{self.address('first')}:{GCS_PORT}"
        self._node(
            "second", ["worker", "--address", gcs, *common, self.address("second"), "--label", "host=second", *extra]
        )
        self._until(lambda: len(self.living_nodes()) == 2, 60)
        return self

    def run(self, host: str, command: list[str], *, cwd: Path, timeout: float = 900, **environment: str) -> Any:
        """Runs a command on a host and waits; an empty value takes a variable away."""
        env = {name: value for name, value in (self.environment | environment).items() if value}
        return subprocess.run(
            ["ip", "netns", "exec", self.space(host), *command],
            cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip

    def rlhf(self, *words: str, cwd: Path, **options: Any) -> Any:
        """The ``rlhf`` command from the client; ``submit`` and ``jobs`` get the cluster's address."""
        return self.run("client", [str(BIN / "rlhf"), *words, "--address", self.dashboard], cwd=cwd, **options)

    def api(self, path: str, *, token: bool = True) -> Any:
        """An answer of the dashboard, asked from the first host; None while there is none."""
        script = (
            "import sys, urllib.request as u; r = u.Request(sys.argv[1], headers={'Authorization': 'Bearer ' + "
            "sys.argv[2]} if sys.argv[2] else {}); sys.stdout.write(u.urlopen(r, timeout=10).read().decode())"
        )
        path_of_token = Path(self.environment["RAY_AUTH_TOKEN_PATH"])
        secret = path_of_token.read_text("utf-8") if token and path_of_token.is_file() else ""
        done = self.run("first", [sys.executable, "-c", script, self.dashboard + path, secret], cwd=self.folder)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def living_nodes(self) -> list[str]:
        found = self.api("/nodes?view=summary")
        rows = found["data"]["summary"] if found else []
        return [row["ip"] for row in rows if row.get("raylet", {}).get("state") == "ALIVE" and "ip" in row]

    def living(self, kind: str) -> list[dict[str, Any]]:
        """Actors or placement groups that are not over."""
        found = self.api(f"/api/v0/{kind}?limit=1000&detail=true")
        rows = found["data"]["result"]["result"]
        return [row for row in rows if row["state"] not in ("DEAD", "REMOVED")]

    def pids(self, host: str) -> list[int]:
        found = subprocess.run(["ip", "netns", "pids", self.space(host)], capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]

    def commands(self, host: str) -> list[str]:
        """Command lines of a host's processes."""
        lines = []
        for pid in self.pids(host):
            try:
                lines.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
        return [line for line in lines if line]

    def link(self, host: str, state: str) -> None:
        """Cuts (``down``) or mends (``up``) a host's cable."""
        ip("-n", self.space("switch"), "link", "set", f"p{HOSTS.index(host)}", state)

    def kill(self, host: str) -> None:
        """Ends a host at once, as a power cut would."""
        for pid in itertools.chain(*(self.pids(host) for _ in range(2))):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def close(self) -> None:
        """Ends the nodes and takes everything away."""
        for node in self.nodes.values():
            node.terminate()
        deadline = time.monotonic() + 20
        while any(node.poll() is None for node in self.nodes.values()) and time.monotonic() < deadline:
            time.sleep(0.1)
        for host in HOSTS:
            while self.pids(host) and time.monotonic() < deadline + 10:
                self.kill(host)
                time.sleep(0.1)
        for node in self.nodes.values():
            node.wait(timeout=10)
        for host in (*HOSTS, "switch"):
            subprocess.run(["ip", "netns", "del", self.space(host)], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _node(self, host: str, words: list[str]) -> None:
        log = (self.folder / f"{host}.log").open("wb")
        self.nodes[host] = subprocess.Popen(
            ["ip", "netns", "exec", self.space(host), sys.executable, "-m", "cluster.start", *words],
            cwd=self.folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        log.close()

    def _until(self, condition: Any, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            for host, node in self.nodes.items():
                if node.poll() is not None or time.monotonic() > deadline:
                    told = (self.folder / f"{host}.log").read_text("utf-8")
                    raise RuntimeError(f"{host} host did not come up (exit {node.poll()}):\n{told}")
            time.sleep(1)  # a question is a process of its own


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
