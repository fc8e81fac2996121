"""Two real ranks on one base: what both hold already is not sent, what differs is, and the pages stay the file's."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny import build_model

BASE_PAGES = 4096 * 4
"""Rank 1 changes one small tensor before the start: it may own the pages that this lies on, and no others."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("alike") / "base", hidden_size=256, intermediate_size=1024)


@pytest.fixture(scope="module")
def ranks(base: Path) -> list[dict[str, Any]]:
    before = file_digest(base)
    command = [sys.executable, "-m", "tests.support.alike_ranks", str(base), str(base / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert file_digest(base) == before
    return json.loads(done.stdout.strip().splitlines()[-1])


def file_digest(base: Path) -> str:
    return hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()


def test_all_ranks_start_from_rank_0_s_tensors(ranks: list[dict[str, Any]]) -> None:
    for key in ("base", "adapters", "stepped"):
        assert ranks[0][key] == ranks[1][key], key
    assert ranks[0]["adapters"] != ranks[0]["stepped"]
    assert [rank["marks"] for rank in ranks] == [0, 0]


def test_ranks_share_the_pages_of_the_file(ranks: list[dict[str, Any]], base: Path) -> None:
    size = (base / "model.safetensors").stat().st_size
    for rank in ranks:
        assert rank["rss"] > 0.95 * size
        assert rank["own"] <= BASE_PAGES
        assert rank["pss"] < 0.6 * rank["rss"]


def test_shared_weights_give_the_same_bits(ranks: list[dict[str, Any]]) -> None:
    assert all(rank["same_logits"] for rank in ranks)
