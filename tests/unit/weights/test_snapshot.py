"""Snapshots carry every bit, and nothing else passes for one."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf.errors import WeightSyncError
from rlhf.weights.snapshot import Snapshot, pack, unpack, write


def state(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "layers.1.lora_B": torch.randn(4, 2, generator=generator),
        "layers.0.lora_A": torch.randn(2, 8, generator=generator).to(torch.bfloat16),
        "scalar": torch.randn((), generator=generator),
        "transposed": torch.randn(3, 5, generator=generator).t(),
        "half": torch.randn(3, generator=generator).half(),
    }


def test_round_trip_keeps_every_bit_shape_and_type() -> None:
    found = unpack(pack(state(), version=3))
    assert found.keys() == state().keys()
    for name, tensor in state().items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor)


def test_unpacked_tensors_are_copies() -> None:
    snapshot = pack(state(), 0)
    unpack(snapshot)["scalar"].add_(1)
    assert torch.equal(unpack(snapshot)["scalar"], state()["scalar"])


def test_memory_of_an_earlier_snapshot_is_used_again_where_it_fits() -> None:
    first = pack(state(), 0)
    changed = {name: tensor + 1 for name, tensor in state().items()}
    second = pack(changed, 1, first)
    assert second.buffer is first.buffer
    assert second.sha256 == pack(changed, 1).sha256
    assert pack({"a": torch.zeros(3)}, 2, first).buffer is not first.buffer
    first.buffer.flags.writeable = False  # it came out of an object store
    assert pack(changed, 3, first).buffer is not first.buffer


def test_hash_knows_content_not_version_nor_order() -> None:
    forward, backward = state(), dict(reversed(state().items()))
    assert pack(forward, 1).sha256 == pack(backward, 2).sha256
    assert pack(forward, 1).num_bytes == 8 * 4 + 16 * 2 + 4 + 15 * 4 + 3 * 2


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 133), st.integers(0, 7))
def test_any_flipped_bit_changes_the_hash_and_is_refused(byte: int, bit: int) -> None:
    snapshot = pack(state(), 1)
    buffer = snapshot.buffer.copy()
    buffer[byte] ^= 1 << bit
    with pytest.raises(WeightSyncError, match="version 1 arrived with other bytes"):
        unpack(replace(snapshot, buffer=buffer))
    assert not np.array_equal(buffer, snapshot.buffer)


def test_hash_sees_names_shapes_and_types() -> None:
    tensor = torch.arange(6.0)
    hashes = {
        pack({"a": tensor}, 0).sha256,
        pack({"b": tensor}, 0).sha256,
        pack({"a": tensor.reshape(2, 3)}, 0).sha256,
        pack({"a": tensor.view(torch.int32)}, 0).sha256,
        pack({"a": tensor[:3], "b": tensor[3:]}, 0).sha256,
    }
    assert len(hashes) == 5


def test_tampered_layout_is_refused() -> None:
    snapshot = pack(state(), 1)
    entries = (replace(snapshot.entries[0], shape=(1,)), *snapshot.entries[1:])
    with pytest.raises(WeightSyncError):
        unpack(replace(snapshot, entries=entries))
    with pytest.raises(WeightSyncError):
        unpack(replace(snapshot, entries=snapshot.entries[:-1]))


def test_nothing_to_publish_is_refused() -> None:
    with pytest.raises(WeightSyncError, match=r"no tensors.*target_modules"):
        pack({}, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_values_are_refused_by_name(value: float) -> None:
    broken = state()
    broken["layers.1.lora_B"][0, 0] = value
    with pytest.raises(WeightSyncError, match=r"layers\.1\.lora_B of version 5 holds non-finite"):
        pack(broken, 5)


def test_a_sum_that_overflows_is_no_non_finite_value() -> None:
    big = {"half": torch.full((1000,), 60_000.0, dtype=torch.float16), "whole": torch.full((4,), 3e38)}
    assert torch.equal(unpack(pack(big, 0))["half"], big["half"])


def live() -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in state().items()}


def from_the_object_store(snapshot: Snapshot) -> Snapshot:
    """What a worker gets: bytes of shared memory that it cannot write."""
    buffer = snapshot.buffer.copy()
    buffer.flags.writeable = False
    return replace(snapshot, buffer=buffer)


@pytest.mark.parametrize("shared", [False, True])
def test_write_makes_live_tensors_hold_every_bit(shared: bool) -> None:
    snapshot, tensors = pack(state(), 2), live()
    given = from_the_object_store(snapshot) if shared else snapshot
    assert write(given, tensors) == snapshot.sha256
    assert all(torch.equal(tensors[name], tensor) for name, tensor in state().items())
    in_place = tensors["scalar"].data_ptr() - given.buffer.ctypes.data
    assert (0 <= in_place < given.num_bytes) is shared, "shared bytes are used where they lie, own ones are copied"
    if not shared:
        tensors["scalar"].add_(1)
        assert torch.equal(unpack(snapshot)["scalar"], state()["scalar"])


def test_write_converts_where_the_live_type_is_wider_and_refuses_where_it_is_narrower() -> None:
    snapshot = pack(state(), 2)
    wide = {name: tensor.double() for name, tensor in live().items()}
    assert write(from_the_object_store(snapshot), wide) == snapshot.sha256
    assert all(t.dtype == torch.float64 and torch.equal(t, state()[n].double()) for n, t in wide.items())
    narrow = {name: tensor.bfloat16() for name, tensor in live().items()}
    with pytest.raises(WeightSyncError, match="version 2: live weights differ"):
        write(snapshot, narrow)


def test_write_takes_parameters_and_the_next_version() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2, 3))
    for version in range(3):
        value = torch.full((2, 3), float(version))
        write(from_the_object_store(pack({"a": value}, version)), {"a": parameter})
        assert torch.equal(parameter, value)


@pytest.mark.parametrize("fault", ["byte", "missing", "surplus", "shape"])
def test_a_refused_snapshot_changes_nothing(fault: str) -> None:
    snapshot, tensors = pack(state(), 2), live()
    if fault == "byte":
        snapshot.buffer[5] ^= 1
    elif fault == "shape":
        tensors["half"] = torch.zeros(4).half()
    else:
        tensors = {**tensors, "more": torch.zeros(1)} if fault == "missing" else {"half": tensors["half"]}
    with pytest.raises(WeightSyncError, match="other bytes" if fault == "byte" else "does not fit"):
        write(snapshot, tensors)
    assert all(not tensor.any() for tensor in tensors.values())


def test_a_header_travels_small_and_its_layout_is_read_once() -> None:
    snapshot = pack(state(), 7)
    header, buffer = snapshot.apart()
    sent = pickle.dumps(header)
    first, second = pickle.loads(sent), pickle.loads(sent)
    assert first == header and first.entries is second.entries
    taken = first.with_buffer(buffer)
    assert all(torch.equal(found, state()[name]) for name, found in unpack(taken).items())
    assert pack(state(), 8).sha256 == taken.sha256


def test_a_known_layout_is_taken_again_only_for_the_same_tensors() -> None:
    first = pack(state(), 0)
    assert pack(state(1), 1, first).entries is first.entries
    for other in (
        {**state(), "scalar": torch.zeros(1)},
        {**state(), "scalar": torch.zeros((), dtype=torch.float64)},
        {name: tensor for name, tensor in state().items() if name != "half"},
        {**{name: tensor for name, tensor in state().items() if name != "half"}, "other": torch.zeros(3).half()},
    ):
        found = pack(other, 1, pack(state(), 0))
        assert found.entries == pack(other, 1).entries and found.sha256 == pack(other, 1).sha256
