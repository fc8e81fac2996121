"""Weights that are too many for one message: several snapshots of one version, verified and written as one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from rlhf.errors import WeightSyncError
from rlhf.weights.snapshot import Header, Snapshot, verify, write


def split_names(sizes: Iterable[tuple[str, int]], limit: int) -> list[tuple[str, ...]]:
    """Names in order, cut into parts of at most ``limit`` bytes; a tensor that is larger makes a part of its own.

    Args:
        sizes: (name, bytes) of every tensor.
    """
    parts: list[list[str]] = []
    room = 0
    for name, size in sizes:
        if not parts or size > room:
            parts.append([])
            room = limit
        parts[-1].append(name)
        room -= size
    return [tuple(part) for part in parts]


def sha_of(parts: Sequence[Snapshot | Header]) -> str:
    """Identity of a version: of one part its own sha256, of several the sha256 over theirs in order."""
    if len(parts) == 1:
        return parts[0].sha256
    return hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()


def write_parts(parts: Sequence[Snapshot], parameters: Mapping[str, Tensor]) -> str:
    """Makes live tensors hold a version; nothing changes when any part of it is refused.

    Returns:
        The identity of what the live tensors hold now.

    Raises:
        WeightSyncError: no part, parts of several versions, damaged bytes, a tensor in none or in two parts.
    """
    versions = {part.version for part in parts}
    if len(versions) != 1:
        raise WeightSyncError(
            f"one version was to be installed, {len(parts)} parts of versions {sorted(versions)} came"
        )
    if len(parts) == 1:
        return write(parts[0], parameters)
    given = [entry.name for part in parts for entry in part.entries]
    if sorted(given) != sorted(parameters):
        wrong = sorted(set(given) ^ set(parameters)) or sorted({name for name in given if given.count(name) > 1})
        raise WeightSyncError(
            f"version {parts[0].version} does not fit: {len(parameters)} live tensors, {len(given)} given; missing, "
            f"surplus or twice: {wrong[:3]}"
        )
    for part in parts:
        verify(part, {entry.name: parameters[entry.name] for entry in part.entries})
    for part in parts:
        write(part, {entry.name: parameters[entry.name] for entry in part.entries}, verified=True)
    return sha_of(parts)
