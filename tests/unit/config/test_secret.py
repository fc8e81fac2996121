"""References to secrets: what they give, and what is said when they give nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.config import read_secret
from rlhf.config.secret import describe_literal, find_literals
from rlhf.errors import ConfigError
from rlhf.telemetry.redaction import redact_text


def test_a_secret_comes_from_a_variable_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ODD_NAME", "  from-the-shell-1 \n")
    (tmp_path / "note").write_text("from-the-file-2\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_secret("env:ODD_NAME") == "from-the-shell-1"
    assert read_secret("file:~/note") == "from-the-file-2"
    assert redact_text("a from-the-shell-1 b from-the-file-2 c") == "a *** b *** c"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"s3cret\ntwo", "line break"),
        (b"a\x00b", "control character"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_files_without_a_secret(content: bytes | None, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=problem) as error:
        read_secret(f"file:{path}")
    assert "s3cret" not in str(error.value)


def test_a_folder_is_no_secret(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_secret(f"file:{tmp_path}")


@pytest.mark.parametrize(
    "text",
    [
        "hf_abcdefghijklmnopQRSTUV",
        "sk-proj-abcdefghij0123456789",
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_abcdefghijklmnopqrstuvwxyz0123",
        "postgresql+psycopg://ann:pw@db/prefs",
    ],
)
def test_known_spellings_are_seen(text: str) -> None:
    assert describe_literal(f"x {text} y")
    assert [key for key, _ in find_literals({"a": [{"b": text}], "c": "plain"})] == ["a.0.b"]


@pytest.mark.parametrize(
    "text",
    [
        "runs/sk-x",
        "runs/sk-learning-rate-experiments",
        "builtin:helpline_base",
        "https://example.org:8080/a@b",
        "store:sqlite:///a.db#p",
        "hf_model",
        "task-specific-adapter-number-one",
        "disk-encryption-key-rotation-notes",
    ],
)
def test_ordinary_names_are_not(text: str) -> None:
    assert describe_literal(text) is None
