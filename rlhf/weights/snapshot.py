"""Versioned adapter snapshots: one flat buffer, names, shapes and one hash over everything.

Blocks of the buffer are fingerprinted with XXH3-128, which reads memory as fast as a copy does (sha256 over the same
bytes would take longer than carrying them); the snapshot's sha256 is over the layout and the blocks' fingerprints. It
tells versions apart and finds damaged, stale and mixed tensors; it is no defence against somebody who may write into
the cluster's memory.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from rlhf.errors import WeightSyncError

BLOCK = 1 << 22
"""Bytes under one fingerprint."""


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies in the flat buffer (offset and length in bytes)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    num_bytes: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch has it."""
        return getattr(torch, self.dtype)


@dataclass(frozen=True)
class Snapshot:
    """One version of an adapter, ready for one ``ray.put``.

    Attributes:
        version: 0 is the adapter before any step; every publish adds 1.
        entries: layout of ``buffer``.
        buffer: uint8, all tensors back to back, wide types first so that each lies aligned.
        sha256: over layout and bytes, not over the version: equal weights have equal hashes.
    """

    version: int
    entries: tuple[TensorEntry, ...]
    buffer: np.ndarray
    sha256: str

    @property
    def num_bytes(self) -> int:
        """Size of the flat buffer."""
        return int(self.buffer.nbytes)


def pack(state: Mapping[str, Tensor], version: int) -> Snapshot:
    """Flattens tensors into one buffer.

    Raises:
        WeightSyncError: for no tensors, or a tensor with a non-finite value.
    """
    if not state:
        raise WeightSyncError("the adapter to publish holds no tensors: check lora.target_modules")
    names = sorted(state, key=lambda name: (-state[name].element_size(), str(state[name].dtype), name))
    entries, offset = [], 0
    for name in names:
        tensor = state[name]
        size = tensor.numel() * tensor.element_size()
        entries.append(TensorEntry(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), offset, size))
        offset += size
    buffer = np.empty(offset, dtype=np.uint8)
    flat = torch.from_numpy(buffer)
    for dtype in dict.fromkeys(entry.torch_dtype for entry in entries):
        own = [entry for entry in entries if entry.torch_dtype == dtype]
        part = flat[own[0].offset : own[-1].offset + own[-1].num_bytes].view(dtype)
        _flatten([state[entry.name].detach() for entry in own], part)
        if not _all_finite(part):
            wrong = next(entry.name for entry in own if not torch.isfinite(_view(flat, entry)).all())
            raise WeightSyncError(f"{wrong} of version {version} holds non-finite values: training has diverged")
    return Snapshot(version, tuple(entries), buffer, _hash(entries, buffer))


def unpack(snapshot: Snapshot) -> dict[str, Tensor]:
    """Tensors of a snapshot (copies), after checking its hash.

    Raises:
        WeightSyncError: when the bytes are not those that were published.
    """
    _check(snapshot)
    flat = _as_tensor(snapshot.buffer)
    return {entry.name: _view(flat, entry).clone() for entry in snapshot.entries}


def write(snapshot: Snapshot, parameters: Mapping[str, Tensor]) -> str:
    """Makes live tensors hold a snapshot, and hashes what they hold afterwards.

    Live tensors of the published dtype become views of one flat buffer on their device. Where that is the CPU and the
    snapshot comes from an object store (its buffer cannot be written), it is that very buffer: nothing is copied, and
    all workers of a host share it. They must then only be read. Nothing changes when the snapshot is refused.

    Returns:
        The sha256 over the live tensors.

    Raises:
        WeightSyncError: damaged bytes, another adapter's names or shapes, or live tensors that hold other values.
    """
    given = {entry.name: entry.shape for entry in snapshot.entries}
    own = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if given != own:
        wrong = sorted(name for name in given.keys() | own.keys() if given.get(name) != own.get(name))
        raise WeightSyncError(
            f"adapter version {snapshot.version} does not fit: {len(own)} live tensors, {len(given)} given; "
            f"missing or of another shape: {wrong[:3]}"
        )
    live = [parameters[entry.name] for entry in snapshot.entries]
    device = live[0].device
    shared = device.type == "cpu" and not snapshot.buffer.flags.writeable
    _check(snapshot)
    flat = _as_tensor(snapshot.buffer)
    flat = flat if shared else flat.to(device, copy=True)
    same_type = True
    for entry, tensor in zip(snapshot.entries, live, strict=True):
        if tensor.dtype == entry.torch_dtype and tensor.device == device:
            tensor.data = _view(flat, entry)
        else:
            same_type = False
            tensor.data.copy_(_view(flat, entry))
    if shared and same_type:
        return snapshot.sha256  # the live tensors are the bytes that have just been hashed
    found = _hash(snapshot.entries, _read_back(snapshot.entries, live, flat, same_type))
    if found != snapshot.sha256:
        raise WeightSyncError(f"adapter version {snapshot.version}: live weights differ from the published ones")
    return found


def _read_back(entries: Sequence[TensorEntry], live: Sequence[Tensor], flat: Tensor, same_type: bool) -> np.ndarray:
    """The live tensors' bytes in the published layout; one transfer, however many tensors there are."""
    if same_type:
        return flat.cpu().numpy()
    found = torch.empty_like(flat)
    for entry, tensor in zip(entries, live, strict=True):
        _view(found, entry).copy_(tensor.detach())
    return found.cpu().numpy()


def _flatten(tensors: list[Tensor], target: Tensor) -> None:
    """Concatenates tensors of one dtype; from an accelerator in one transfer."""
    rows = [tensor.reshape(-1) for tensor in tensors]
    if all(row.device.type == "cpu" for row in rows):
        torch.cat(rows, out=target)
    else:
        target.copy_(torch.cat(rows))


def _all_finite(flat: Tensor) -> bool:
    """A sum shows NaN and infinities at the speed of memory; where it is not finite, or overflows, all are checked."""
    if not flat.is_floating_point() or bool(torch.isfinite(flat.sum())):
        return True
    return bool(torch.isfinite(flat).all())


def _view(flat: Tensor, entry: TensorEntry) -> Tensor:
    return flat[entry.offset : entry.offset + entry.num_bytes].view(entry.torch_dtype).view(entry.shape)


def _as_tensor(buffer: np.ndarray) -> Tensor:
    with warnings.catch_warnings():  # torch has no read-only tensors and says so
        warnings.simplefilter("ignore")
        return torch.from_numpy(buffer)


def _check(snapshot: Snapshot) -> None:
    if _hash(snapshot.entries, snapshot.buffer) != snapshot.sha256:
        raise WeightSyncError(f"adapter version {snapshot.version} arrived with other bytes than were published")


def _hash(entries: Iterable[TensorEntry], buffer: np.ndarray) -> str:
    digest = hashlib.sha256(repr([(e.name, e.shape, e.dtype, e.offset, e.num_bytes) for e in entries]).encode())
    for start in range(0, buffer.nbytes, BLOCK):
        block: Any = buffer[start : start + BLOCK]
        digest.update(xxhash.xxh3_128_digest(block))
    digest.update(str(buffer.nbytes).encode())
    return digest.hexdigest()
