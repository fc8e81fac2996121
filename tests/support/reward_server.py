"""A real reward server on this machine, with one fault per request where a test plants it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class RewardServer(ThreadingHTTPServer):
    """Counts the letter e.

    Attributes:
        faults: what the next requests get, in order; then good answers.
        seen: (headers, body) of every request.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults: list[str] = []
        self.seen: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.released = threading.Event()
        self.scheme = "http"

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}/score?v=1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients of these tests hang up on purpose."""


class _Handler(BaseHTTPRequestHandler):
    server: RewardServer

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((dict(self.headers), body))
        scores: list[Any] = [float(text.count("e")) for text in body["responses"]]
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if fault in ("timeout", "slow_drip", "slow_headers"):
            self._slowly(fault)
        elif fault == "refuse":
            self.connection.close()
        elif fault == "redirect":
            self._answer(307, b"", Location="http://127.0.0.2:9/elsewhere")
        elif fault.isdigit():
            token = self.headers["Authorization"]
            self._answer(int(fault), f"no, {token}".encode())
        elif fault == "not_json":
            self._answer(200, b"<html>busy</html>")
        elif fault == "no_scores":
            self._answer(200, b'{"score": 1}')
        elif fault == "endless":
            self._answer(200, b" " * (3 * 2**20))
        else:
            changed = {"wrong_length": scores[1:], "nan": [*scores[:-1], float("nan")], "null": [*scores[:-1], None]}
            changed["inf"] = [*scores[:-1], float("inf")]
            self._answer(200, json.dumps({"scores": changed.get(fault, scores)}).encode())

    def _answer(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _slowly(self, fault: str) -> None:
        if fault == "timeout":
            self.server.released.wait(20)
            return
        if fault == "slow_drip":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
        with suppress(OSError):
            for _ in range(400):
                self.wfile.write(b" " if fault == "slow_drip" else b"H")
                self.wfile.flush()
                if self.server.released.wait(0.05):
                    return


@contextmanager
def reward_server(tls: Any = None) -> Iterator[RewardServer]:
    """A server on a free port of the loopback address, gone afterwards.

    Args:
        tls: an ``ssl.SSLContext`` with a certificate.
    """
    server = RewardServer()
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        server.scheme = "https"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
        time.sleep(0)
