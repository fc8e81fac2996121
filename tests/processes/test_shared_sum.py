"""Ranks of one host sum gradients in memory that all see: three real processes in a gloo group."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    store = tmp_path_factory.mktemp("sum") / "store"
    command = [sys.executable, "-m", "tests.support.shared_sum_ranks", str(store)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_every_rank_has_the_mean_in_every_round_and_all_the_same_bits(ranks: list[dict[str, Any]]) -> None:
    assert all(rank["off"] < 1e-6 for rank in ranks)
    assert ranks[0]["last"] == ranks[1]["last"] == ranks[2]["last"]


def test_another_host_s_memory_is_not_taken_for_this_one_s_and_all_ranks_agree(ranks: list[dict[str, Any]]) -> None:
    assert all(rank["elsewhere"] for rank in ranks)


def test_large_gradients_and_mixed_types_go_the_engine_s_own_way(ranks: list[dict[str, Any]]) -> None:
    assert all(rank["large"] and rank["types"] for rank in ranks)


def test_nothing_stays_open(ranks: list[dict[str, Any]]) -> None:
    assert [rank["descriptors"] for rank in ranks] == [1, 1, 1], "of the memory in use, which its map holds"


def test_a_rank_that_died_is_noticed_within_the_group_s_bound(ranks: list[dict[str, Any]]) -> None:
    assert all(rank["noticed"] is not None and rank["noticed"] < 12 for rank in ranks[:2])
