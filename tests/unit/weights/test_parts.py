"""A version in several parts is one version, or it is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf.errors import WeightSyncError
from rlhf.weights.parts import sha_of, split_names, write_parts
from rlhf.weights.snapshot import Snapshot, pack

NAMES = ("a", "b", "c", "d")


def state(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3, 2 + i, generator=generator) for i, name in enumerate(NAMES)}


def parts_of(tensors: dict[str, Tensor], version: int = 1) -> list[Snapshot]:
    return [pack({name: tensors[name] for name in group}, version) for group in (NAMES[:1], NAMES[1:3], NAMES[3:])]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 60))
def test_parts_hold_every_name_once_in_order_within_the_limit(sizes: list[int], limit: int) -> None:
    named = [(str(index), size) for index, size in enumerate(sizes)]
    found = split_names(named, limit)
    assert [name for part in found for name in part] == [name for name, _ in named]
    for part, following in zip(found, [*found[1:], ()], strict=True):
        whole = sum(sizes[int(name)] for name in part)
        assert whole <= limit or len(part) == 1
        assert not following or whole + sizes[int(following[0])] > limit, "another would have fitted"


def test_a_version_is_written_whole() -> None:
    live, sent = state(0), state(1)
    parts = parts_of(sent)
    assert write_parts(parts, live) == sha_of(parts)
    assert all(torch.equal(live[name], sent[name]) for name in NAMES)
    assert sha_of(parts[:1]) == parts[0].sha256
    assert sha_of(parts) != sha_of(parts[::-1]) and sha_of(parts) != sha_of(parts_of(live | {"d": live["d"] + 1}))


@pytest.mark.parametrize("fault", ["missing", "twice", "mixed", "damaged", "shape", "none"])
def test_what_is_no_version_changes_nothing(fault: str) -> None:
    live, parts = state(0), parts_of(state(1))
    if fault == "missing":
        parts = parts[:2]
    elif fault == "twice":
        parts.append(parts[0])
    elif fault == "mixed":
        parts[2] = replace(parts[2], version=2)
    elif fault == "damaged":
        parts[2].buffer[3] ^= 1
    elif fault == "shape":
        parts[2] = pack({"d": torch.zeros(3, 9)}, 1)
    else:
        parts = []
    with pytest.raises(WeightSyncError, match="version"):
        write_parts(parts, live)
    assert all(torch.equal(live[name], tensor) for name, tensor in state(0).items())
