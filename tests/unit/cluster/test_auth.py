"""The token is private from its first byte on, and nothing starts or joins without it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster import auth
from cluster.start import build_parser, head_command, main
from rlhf.config import PlacementConfig, ray_token
from rlhf.errors import ConfigError
from rlhf.workers.runtime import ray_runtime


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / ".ray" / "auth_token"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    return tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_made_token_is_private_whatever_the_umask(home: Path) -> None:
    before = os.umask(0)
    try:
        path = ray_token.create_token()
    finally:
        os.umask(before)
    assert mode(path) == 0o600 and mode(path.parent) == 0o700
    assert len(path.read_text("utf-8")) == 64
    token = path.read_text("utf-8")
    assert ray_token.create_token().read_text("utf-8") == token, "a token that is there is kept"


def test_an_empty_file_is_no_token(home: Path) -> None:
    path = ray_token.token_path()
    path.parent.mkdir()
    path.touch()
    assert len(ray_token.create_token().read_text("utf-8")) == 64
    assert mode(path) == 0o600 and list(path.parent.iterdir()) == [path]


def test_whoever_makes_it_at_once_gets_the_same_token(home: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        found = set(pool.map(lambda _: ray_token.create_token().read_text("utf-8"), range(64)))
    assert len(found) == 1 and len(found.pop()) == 64
    assert list(ray_token.token_path().parent.iterdir()) == [ray_token.token_path()]


def test_a_private_runtime_makes_the_token_before_ray_does(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def init(**_: object) -> None:
        seen.append(mode(ray_token.token_path()))
        raise KeyboardInterrupt

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(KeyboardInterrupt), ray_runtime(PlacementConfig(), num_workers=1):
        pass
    assert seen == [0o600]


def test_open_token_files_are_closed(home: Path) -> None:
    path = ray_token.token_path()
    path.parent.mkdir(mode=0o755)
    path.write_text("abc", encoding="utf-8")
    path.chmod(0o644)
    assert ray_token.fix_token_mode() == [path, path.parent]
    assert mode(path) == 0o600 and mode(path.parent) == 0o700
    assert ray_token.fix_token_mode() == []


def test_nothing_runs_without_a_token(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    with pytest.raises(ConfigError, match="no token"):
        auth.enable_token_auth()
    ray_token.token_path().parent.mkdir()
    ray_token.token_path().touch()
    with pytest.raises(ConfigError, match="empty"):
        auth.enable_token_auth()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abc")
    auth.enable_token_auth()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ConfigError, match="RAY_AUTH_MODE=disabled"):
        auth.enable_token_auth()


def test_the_mode_is_set_for_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    ray_token.create_token()
    monkeypatch.delenv("RAY_AUTH_MODE")
    auth.enable_token_auth()
    shown = subprocess.run([sys.executable, "-c", "import os; print(os.environ['RAY_AUTH_MODE'])"],
                           capture_output=True, text=True, timeout=30)  # fmt: skip
    assert shown.stdout.strip() == "token"


def test_a_worker_without_a_token_is_not_started(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worker", "--address", "10.255.0.1:6379"]) == 6
    assert "no token" in capsys.readouterr().out


def test_a_dashboard_for_strangers_needs_a_word() -> None:
    args = build_parser().parse_args(["head", "--dashboard-host", "0.0.0.0"])
    with pytest.raises(ConfigError, match="--i-am-on-a-private-network"):
        head_command(args, [])
    args.i_am_on_a_private_network = True
    assert "--dashboard-host=0.0.0.0" in head_command(args, [])
    for host in ("127.0.0.1", "::1", "localhost"):
        assert f"--dashboard-host={host}" in head_command(
            build_parser().parse_args(["head", "--dashboard-host", host]), []
        )


def test_a_port_among_the_workers_is_refused() -> None:
    with pytest.raises(ConfigError, match="16379"):
        head_command(build_parser().parse_args(["head", "--port", "16379"]), [])


def test_what_comes_after_two_dashes_goes_to_ray() -> None:
    command = head_command(build_parser().parse_args(["head", "--label", "role=trainer"]), ["--num-cpus=3"])
    assert command[-2:] == ["--labels=role=trainer", "--num-cpus=3"]
