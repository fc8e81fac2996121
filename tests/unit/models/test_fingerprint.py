"""A base is told by its bytes; they are read once while the files stay as they are."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from rlhf.models import source
from rlhf.models.source import base_fingerprint


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def test_it_is_the_sha256_of_names_and_bytes(base: Path) -> None:
    assert base_fingerprint(str(base)) == hashlib.sha256(b"config.json{}model.safetensorsweights").hexdigest()
    assert base_fingerprint("org/name") == hashlib.sha256(b"org/name").hexdigest()


def test_bytes_are_read_once(base: Path) -> None:
    source._sha256.cache_clear()
    assert len({base_fingerprint(str(base)) for _ in range(5)}) == 1
    assert source._sha256.cache_info().misses == 1


def test_a_changed_file_is_read_again(base: Path) -> None:
    before = base_fingerprint(str(base))
    (base / "model.safetensors").write_bytes(b"WEIGHTS")
    changed = base_fingerprint(str(base))
    (base / "extra.safetensors").write_bytes(b"")
    assert len({before, changed, base_fingerprint(str(base))}) == 3


def test_a_directory_without_a_config_is_no_base(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        base_fingerprint(str(tmp_path))
