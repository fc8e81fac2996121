"""Starting the server: fast, without the training stack, and only in ways that keep passwords safe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from preference_ui.app.serve import main
from preference_ui.db import open_store
from preference_ui.people import find_annotator
from preference_ui.projects import create_project
from tests.ui.app.ui_helpers import PASSWORD

_PROBE = """
import json, resource, sys
from preference_ui.app.address import Address
from preference_ui.app.site import Site
from preference_ui.app.web import build_app
from preference_ui.db import open_store
build_app(Site(open_store(sys.argv[1]), "helpline", Address("http://127.0.0.1:1")))
used = resource.getrusage(resource.RUSAGE_SELF)
heavy = sorted({"torch", "ray", "transformers", "deepspeed", "trl", "tensorflow"} & set(sys.modules))
import preference_ui.app.board.web
board = sorted({"torch", "ray", "transformers"} & set(sys.modules))
print(json.dumps({"heavy": heavy, "cpu": used.ru_utime + used.ru_stime, "board": board}))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "p.sqlite"
    create_project(open_store(file), "helpline")
    return file


def test_starts_soon_and_without_the_training_stack(path: Path) -> None:
    """The page's server, and the board's, which is asked in the same process because each loads Gradio for seconds."""
    out = subprocess.run([sys.executable, "-c", _PROBE, str(path)], capture_output=True, text=True, check=True)
    measured = json.loads(out.stdout)
    assert measured["heavy"] == [] and measured["board"] == []
    # Processor time: the wall clock of a busy machine says nothing about the program.
    assert measured["cpu"] <= 10.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "--public-url"),
        (["--public-url", "http://rank.example.org"], "unencrypted"),
        (["--host", "0.0.0.0", "--public-url", "http://10.0.0.1:7860"], "--certfile"),
        (["--public-url", "https://rank.example.org/path"], "without a path"),
        (["--certfile", "x.pem"], "go together"),
        (["--host", "256.0.0.1"], "cannot listen on 256.0.0.1:0"),
        (["--host", "a..b"], "cannot listen on a..b:0"),
        (["--port", "99999"], "--port 99999 is no port: give 1 to 65535"),
        (["--port", "-1"], "--port -1 is no port"),
    ],
)
def test_unsafe_or_impossible_addresses_are_refused(
    path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert main(["--project", "helpline", "--store", str(path), "--port", "0", *options]) == 2
    assert words in capsys.readouterr().err


def test_a_missing_project_or_admin_is_told_before_anything_starts(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RLHF_ADMIN_PASSWORD", raising=False)
    base = ["--store", str(path), "--port", "0"]
    assert main(["--project", "nope", *base]) == 2
    assert "helpline" in capsys.readouterr().err
    assert main(["--project", "helpline", *base]) == 2
    assert "--admin" in capsys.readouterr().err
    assert main(["--project", "helpline", *base, "--admin", "root"]) == 2
    assert "RLHF_ADMIN_PASSWORD" in capsys.readouterr().err
    monkeypatch.setenv("RLHF_ADMIN_PASSWORD", "short")
    assert main(["--project", "helpline", *base, "--admin", "root"]) == 2
    said = capsys.readouterr()
    assert "10 characters" in said.err
    assert "short" not in said.err + said.out
    assert find_annotator(open_store(path), "root") is None
    assert main(["--project", "helpline", "--store", str(path.with_name("none.sqlite")), "--port", "0"]) == 4


def test_help_names_the_ways_to_start() -> None:
    command = [sys.executable, "-m", "preference_ui.app.serve", "--help"]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "120"})
    for words in ("--project", "--public-url", "RLHF_ADMIN_PASSWORD", "postgresql://"):
        assert words in out.stdout
    assert PASSWORD not in out.stdout
