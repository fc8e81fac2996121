"""A version on its way: its header travels with the call, its bytes wait in an object store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray

from rlhf.weights.snapshot import Header, Snapshot


@dataclass(frozen=True)
class Shipped:
    """A snapshot for workers, as an argument.

    Attributes:
        buffer: reference to the flat buffer in an object store.
    """

    header: Header
    buffer: Any

    @classmethod
    def put(cls, snapshot: Snapshot) -> Shipped:
        """Puts a snapshot that lies here into the store."""
        header, buffer = snapshot.apart()
        return cls(header, ray.put(buffer))

    def fetch(self, timeout: float) -> Snapshot:
        """The snapshot; on the host that has the bytes they are mapped, not copied.

        Args:
            timeout: seconds to wait for bytes from another host.
        """
        return self.header.with_buffer(ray.get(self.buffer, timeout=timeout))
