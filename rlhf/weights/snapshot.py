"""Versioned adapter snapshots: one flat buffer, names, shapes and one hash over everything.

Blocks of the buffer are fingerprinted with XXH3-128, which reads memory as fast as a copy does (sha256 over the same
bytes would take longer than carrying them); the snapshot's sha256 is over the layout and the blocks' fingerprints. It
tells versions apart and finds damaged, stale and mixed tensors; it is no defence against somebody who may write into
the cluster's memory.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from rlhf.errors import WeightSyncError
from rlhf.weights.layout import Layout, TensorEntry, layout_of, text_of

BLOCK = 1 << 22
"""Bytes under one fingerprint."""


@dataclass(frozen=True)
class Header:
    """What is known of a version without its bytes.

    Attributes:
        num_bytes: size of the flat buffer.
    """

    version: int
    entries: tuple[TensorEntry, ...]
    num_bytes: int
    sha256: str

    def with_buffer(self, buffer: np.ndarray) -> Snapshot:
        """The snapshot; its bytes are checked where it is written or unpacked."""
        return Snapshot(self.version, self.entries, buffer, self.sha256)


@dataclass(frozen=True)
class Snapshot:
    """One version of an adapter, or of a part of whole weights.

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

    def apart(self) -> tuple[Header, np.ndarray]:
        """What is small, and what only those need who take the version."""
        return Header(self.version, self.entries, self.num_bytes, self.sha256), self.buffer


def pack(state: Mapping[str, Tensor], version: int, last: Snapshot | None = None) -> Snapshot:
    """Flattens tensors into one buffer.

    Args:
        last: an earlier snapshot that nobody reads any more. Where it was of the same tensors its layout is taken, and
            its buffer is written over: memory that was touched before takes half the time of fresh memory.

    Raises:
        WeightSyncError: for no tensors, or a tensor with a non-finite value.
    """
    if not state:
        raise WeightSyncError("the adapter to publish holds no tensors: check lora.target_modules")
    known = None if last is None else last.entries
    layout = known if isinstance(known, Layout) and known.holds(state) else layout_of(state)
    size = layout[-1].offset + layout[-1].num_bytes
    fits = last is not None and last.num_bytes == size and last.buffer.flags.writeable
    buffer = last.buffer if last is not None and fits else np.empty(size, dtype=np.uint8)
    flat = torch.from_numpy(buffer)
    fingerprint = _Fingerprint(layout, buffer)

    def check(own: list[TensorEntry], part: Tensor) -> None:
        _refuse_non_finite(own, part, version)
        fingerprint.read(own[-1].offset + own[-1].num_bytes)

    with ThreadPoolExecutor(1) as beside:  # what has been copied is read twice while the next is copied
        checks = []
        for own, part in _stretches(flat, layout):
            _flatten([state[entry.name].detach() for entry in own], part)
            checks.append(beside.submit(check, own, part))
        for each in checks:
            each.result()
    return Snapshot(version, layout, buffer, fingerprint.close())


def unpack(snapshot: Snapshot) -> dict[str, Tensor]:
    """Tensors of a snapshot (copies), after checking its hash.

    Raises:
        WeightSyncError: when the bytes are not those that were published.
    """
    _check(snapshot)
    flat = as_tensor(snapshot.buffer)
    return {e.name: view.clone() for e, view in zip(snapshot.entries, _views(flat, snapshot.entries), strict=True)}


def verify(snapshot: Snapshot, parameters: Mapping[str, Tensor]) -> None:
    """Whether a snapshot fits live tensors and holds the bytes that were published.

    Raises:
        WeightSyncError: damaged bytes, or another model's names or shapes.
    """
    given = {entry.name: entry.shape for entry in snapshot.entries}
    own = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if given != own:
        wrong = sorted(name for name in given.keys() | own.keys() if given.get(name) != own.get(name))
        raise WeightSyncError(
            f"adapter version {snapshot.version} does not fit: {len(own)} live tensors, {len(given)} given; "
            f"missing or of another shape: {wrong[:3]}"
        )
    _check(snapshot)


def write(snapshot: Snapshot, parameters: Mapping[str, Tensor], *, verified: bool = False) -> str:
    """Makes live tensors hold a snapshot, and hashes what they hold afterwards.

    Live tensors of the published dtype become views of one flat buffer on their device. Where that is the CPU and the
    snapshot comes from an object store (its buffer cannot be written), it is that very buffer: nothing is copied, and
    all workers of a host share it. They must then only be read. Nothing changes when the snapshot is refused.

    Args:
        verified: ``verify`` has been asked already; it reads every byte.

    Returns:
        The sha256 over the live tensors.

    Raises:
        WeightSyncError: what ``verify`` raises, or live tensors that hold other values afterwards.
    """
    if not verified:
        verify(snapshot, parameters)
    live = [parameters[entry.name] for entry in snapshot.entries]
    device = live[0].device
    shared = device.type == "cpu" and not snapshot.buffer.flags.writeable
    flat = as_tensor(snapshot.buffer)
    flat = flat if shared else flat.to(device, copy=True)
    same_type = True
    for view, tensor in zip(_views(flat, snapshot.entries), live, strict=True):
        if tensor.dtype == view.dtype and tensor.device == device:
            tensor.data = view
        else:
            same_type = False
            tensor.data.copy_(view)
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
    for view, tensor in zip(_views(found, entries), live, strict=True):
        view.copy_(tensor.detach())
    return found.cpu().numpy()


def _flatten(tensors: list[Tensor], target: Tensor) -> None:
    """Concatenates tensors of one dtype; from an accelerator in one transfer."""
    rows = [tensor.reshape(-1) for tensor in tensors]
    if all(row.device.type == "cpu" for row in rows):
        torch.cat(rows, out=target)
    else:
        target.copy_(torch.cat(rows))


def _refuse_non_finite(own: Sequence[TensorEntry], part: Tensor, version: int) -> None:
    if not _all_finite(part):
        pieces = part.split([math.prod(entry.shape) for entry in own])
        wrong = next(e.name for e, piece in zip(own, pieces, strict=True) if not torch.isfinite(piece).all())
        raise WeightSyncError(f"{wrong} of version {version} holds non-finite values: training has diverged")


def _all_finite(flat: Tensor) -> bool:
    """A sum shows NaN and infinities at the speed of memory; where it is not finite, or overflows, all are checked."""
    if not flat.is_floating_point() or bool(torch.isfinite(flat.sum())):
        return True
    return bool(torch.isfinite(flat).all())


def _runs(flat: Tensor, entries: Sequence[TensorEntry]) -> Iterator[tuple[list[TensorEntry], Tensor]]:
    """(entries of one dtype, their stretch of the buffer in that dtype); entries of one dtype lie back to back."""
    for dtype, group in groupby(entries, key=lambda entry: entry.dtype):
        own = list(group)
        yield own, flat[own[0].offset : own[-1].offset + own[-1].num_bytes].view(getattr(torch, dtype))


def _stretches(flat: Tensor, entries: Sequence[TensorEntry]) -> Iterator[tuple[list[TensorEntry], Tensor]]:
    """As ``_runs``, in pieces of whole tensors that go into a processor's cache where the tensors do."""
    for own, part in _runs(flat, entries):
        first = 0
        for last, entry in enumerate(own, 1):
            held = entry.offset + entry.num_bytes - own[first].offset
            if held >= BLOCK or last == len(own):
                begin = (own[first].offset - own[0].offset) // part.element_size()
                yield own[first:last], part[begin : begin + held // part.element_size()]
                first = last


def _views(flat: Tensor, entries: Sequence[TensorEntry]) -> Iterator[Tensor]:
    """Every tensor as a view of the buffer, in the entries' order."""
    for own, part in _runs(flat, entries):
        parts = part.split([math.prod(entry.shape) for entry in own])
        yield from (piece.view(entry.shape) for entry, piece in zip(own, parts, strict=True))


def as_tensor(buffer: np.ndarray) -> Tensor:
    """A buffer as a tensor over the same memory, which is only read where the buffer is read-only."""
    with warnings.catch_warnings():  # torch has no read-only tensors and says so
        warnings.simplefilter("ignore")
        return torch.from_numpy(buffer)


def _check(snapshot: Snapshot) -> None:
    if _hash(snapshot.entries, snapshot.buffer) != snapshot.sha256:
        raise WeightSyncError(f"adapter version {snapshot.version} arrived with other bytes than were published")


def _hash(entries: Iterable[TensorEntry], buffer: np.ndarray) -> str:
    return _Fingerprint(entries, buffer).close()


class _Fingerprint:
    """The sha256 over layout and blocks of a buffer that may still be filling up, front to back."""

    def __init__(self, entries: Iterable[TensorEntry], buffer: np.ndarray) -> None:
        self._buffer, self._start = buffer, 0
        self._digest = hashlib.sha256(entries.text if isinstance(entries, Layout) else text_of(entries))

    def read(self, stop: int) -> None:
        """Takes the blocks that end at or before byte ``stop``."""
        while self._start + BLOCK <= stop:
            self._take(self._start + BLOCK)

    def close(self) -> str:
        """Takes what is left."""
        self.read(self._buffer.nbytes)
        if self._start < self._buffer.nbytes:
            self._take(self._buffer.nbytes)
        self._digest.update(str(self._buffer.nbytes).encode())
        return self._digest.hexdigest()

    def _take(self, stop: int) -> None:
        block: Any = self._buffer[self._start : stop]
        self._digest.update(xxhash.xxh3_128_digest(block))
        self._start = stop
