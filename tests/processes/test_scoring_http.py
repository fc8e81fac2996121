"""Reward servers that are slow, wrong, gone or hostile: bounded attempts, then a typed error or a counted drop."""

from __future__ import annotations

import datetime
import ipaddress
import math
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from rlhf.config import HttpSource
from rlhf.config.stages import ScoreConfig
from rlhf.errors import ConfigError, DataError, WorkerError
from rlhf.stages.scoring import Scorer
from rlhf.stages.scoring_http import HttpScores
from tests.support.reward_server import RewardServer, reward_server

RESPONSES = ["tree", "x", "eee"]
GOOD = [2.0, 0.0, 3.0]
MODES = {
    "timeout": "timeout",
    "refuse": "connection",
    "500": "status",
    "slow_drip": "timeout",
    "wrong_length": "wrong_length",
    "not_json": "not_json",
    "nan": "not_finite",
    "inf": "not_finite",
}
PATIENT, SHORT = 5.0, 0.4
"""Seconds that an answer may take: short only where none comes, because good answers of that case must keep it too."""
MORE_MODES = {"slow_headers": "timeout", "429": "status", "null": "not_a_number", "no_scores": "wrong_length"}


@pytest.fixture
def server() -> Iterator[RewardServer]:
    with reward_server() as running:
        yield running


def source(server: RewardServer, **settings: Any) -> HttpSource:
    return HttpSource(url=server.url, **{"timeout_seconds": PATIENT, "backoff_seconds": 0.01, "retries": 2, **settings})


def score(scores: HttpScores) -> list[float]:
    return scores.score(["p"] * len(RESPONSES), RESPONSES)


@pytest.mark.parametrize(("mode", "kind"), [*MODES.items(), *MORE_MODES.items()])
def test_every_fault_is_bounded_and_typed_or_counted(mode: str, kind: str, server: RewardServer) -> None:
    limit = SHORT if kind == "timeout" else PATIENT
    made_good = HttpScores(source(server, timeout_seconds=limit))
    server.faults = [mode]
    assert score(made_good) == GOOD
    assert dict(made_good.errors) == {kind: 1} and len(server.seen) == 2

    started = time.monotonic()
    for_good = HttpScores(source(server, timeout_seconds=limit))
    server.faults = [mode] * 3
    error = DataError if kind in ("not_json", "wrong_length", "not_finite", "not_a_number") else WorkerError
    with pytest.raises(error, match=rf"reward server {server.url.partition('?')[0]}"):
        score(for_good)
    assert dict(for_good.errors) == {kind: 3} and not server.faults

    dropping = HttpScores(source(server, timeout_seconds=limit, on_error="drop"))
    server.faults = [mode] * 3
    values = score(dropping)
    one_row = kind in ("not_finite", "not_a_number")
    assert values[:2] == GOOD[:2] if one_row else all(map(math.isnan, values))
    assert math.isnan(values[2]) and dict(dropping.errors) == {kind: 3}
    assert time.monotonic() - started < 6 * limit + 2


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    scores = HttpScores(HttpSource(url=url, retries=1, backoff_seconds=0.01))
    with pytest.raises(WorkerError, match="cannot be reached: ConnectionRefusedError"):
        score(scores)
    assert dict(scores.errors) == {"connection": 2}


def test_what_is_sent_and_the_sum_of_errors(server: RewardServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_SERVER_PASS", "tok-31337-secret")
    wanted = source(server, token="env:REWARD_SERVER_PASS", weight=2.0, rows_per_request=2, on_error="drop", retries=0)
    scorer = Scorer((wanted,), ScoreConfig())
    server.faults = ["", "500"]
    found = scorer.total(["a", "b", "c"], RESPONSES, torch.zeros(3, 1))
    assert found.scores[:2].tolist() == [4.0, 0.0] and found.scored.tolist() == [True, True, False]
    assert scorer.errors == {"status": 1}
    assert [body["prompts"] for _, body in server.seen] == [["a", "b"], ["c"]]
    assert {head["Authorization"] for head, _ in server.seen} == {"Bearer tok-31337-secret"}
    scorer.close()


def test_an_error_never_shows_the_token(server: RewardServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "token"
    path.write_text("odd-looking-31337\n")
    scores = HttpScores(source(server, token=f"file:{path}"))
    server.faults = ["403"]  # it answers with the header that it got
    with pytest.raises(WorkerError, match=r"answered 403 Forbidden: 'no, Bearer \*\*\*") as error:
        score(scores)
    assert "31337" not in str(error.value) and len(server.seen) == 1  # a refusal is not tried again


def test_redirects_are_not_followed(server: RewardServer) -> None:
    scores = HttpScores(source(server))
    server.faults = ["redirect"]
    with pytest.raises(WorkerError, match=r"redirects to http://127\.0\.0\.2:9/elsewhere .* set url"):
        score(scores)
    assert len(server.seen) == 1


def test_an_answer_without_end_is_not_read(server: RewardServer) -> None:
    server.faults = ["endless"]
    with pytest.raises(WorkerError, match="longer than"):
        score(HttpScores(source(server, retries=0, timeout_seconds=5)))


def test_requests_run_beside_each_other_and_in_order(server: RewardServer) -> None:
    scores = HttpScores(source(server, rows_per_request=1, concurrent_requests=8, retries=1, timeout_seconds=1))
    server.faults = ["timeout", "timeout", "timeout"]
    started = time.monotonic()
    assert score(scores) == GOOD
    assert time.monotonic() - started < 2.5  # one after the other would take three
    assert scores.errors.total() == 3


def test_threads_and_sockets_do_not_stay(server: RewardServer) -> None:
    scores = HttpScores(source(server, retries=0, timeout_seconds=0.2, on_error="drop"))
    server.faults = ["slow_drip", "slow_headers", "timeout"]
    for _ in range(3):
        score(scores)
    deadline = time.monotonic() + 3
    while any(t.name == "reward-request" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [t.name for t in threading.enumerate() if t.name.startswith("reward-request")]


def certificate(folder: Path, name: str) -> ssl.SSLContext:
    """A server context with a fresh self-signed certificate, stored as ``name.pem``."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context


def test_certificates_are_verified(tmp_path: Path) -> None:
    with reward_server(certificate(tmp_path, "ours")) as server:
        trusted = source(server, ca_file=str(tmp_path / "ours.pem"), timeout_seconds=5)
        assert score(HttpScores(trusted)) == GOOD
        with pytest.raises(WorkerError, match="certificate is not trusted"):
            score(HttpScores(source(server, timeout_seconds=5)))
        certificate(tmp_path, "other")
        with pytest.raises(WorkerError, match="certificate is not trusted"):
            score(HttpScores(source(server, ca_file=str(tmp_path / "other.pem"), timeout_seconds=5)))
        assert len(server.seen) == 1  # nothing was sent to a server that could not prove its name
    with pytest.raises(ConfigError, match="no readable certificates"):
        HttpScores(HttpSource(url="https://localhost/", ca_file=str(tmp_path / "none.pem")))


def test_a_token_that_is_not_there_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="NO_SUCH_VARIABLE is not set"):
        HttpScores(HttpSource(url="https://localhost/", token="env:NO_SUCH_VARIABLE"))
    with pytest.raises(ConfigError, match="cannot be read"):
        HttpScores(HttpSource(url="https://localhost/", token=f"file:{tmp_path}/none"))


def test_the_server_of_the_page_works(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
    code = page.partition("runs this server -->\n```python\n")[2].partition("```")[0]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("REWARD_TOKEN", "page-31337-token")
    server = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PORT": str(port)}, stderr=-3)
    try:
        url = f"http://127.0.0.1:{port}/"
        settings = {"retries": 8, "backoff_seconds": 0.2, "timeout_seconds": 5}
        scores = HttpScores(HttpSource(url=url, token="env:REWARD_TOKEN", **settings))  # type: ignore[arg-type]
        assert scores.score(["p", "p"], ["Thank you!", "No."]) == [1.0, 0.0]
        with pytest.raises(WorkerError, match="answered 401"):
            HttpScores(HttpSource(url=url)).score(["p"], ["r"])
    finally:
        server.kill()
        server.wait()
