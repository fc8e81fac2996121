"""One host's member of the group that carries whole weights between hosts."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from rlhf.weights.snapshot import as_tensor
from rlhf.workers.context import WorkerContext


@dataclass(frozen=True)
class Carried:
    """A piece that has come: the driver hears of its size, and only the host that it came to holds its bytes."""

    buffer: np.ndarray

    def apart(self) -> tuple[int, np.ndarray]:
        """Size in bytes, and the bytes."""
        return self.buffer.nbytes, self.buffer


class Broadcaster:
    """Rank 0 stands on the trainer's host and sends; the others hand over what came, for their host's object store.

    Args:
        timeout_seconds: after which a member that waits for another gives up.
    """

    def __init__(self, context: WorkerContext, timeout_seconds: float) -> None:
        torch.set_num_threads(1)
        self._buffers = [np.empty(0, dtype=np.uint8)] * 2
        """A piece is copied to the store from one of them while the next arrives in the other."""
        self._beside = ThreadPoolExecutor(1)
        self._next: Future[np.ndarray] | None = None
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout_seconds))

    def send(self, piece: np.ndarray) -> None:
        """A piece, uint8, to all other members; called in rank 0."""
        dist.broadcast(torch.tensor([piece.nbytes]), 0)
        dist.broadcast(as_tensor(piece), 0)

    def receive(self, more: bool) -> Carried:
        """The next piece from rank 0.

        Args:
            more: another one follows, and is received from now on.
        """
        came = (self._next or self._beside.submit(self._receive)).result()
        self._next = self._beside.submit(self._receive) if more else None
        return Carried(came)

    def _receive(self) -> np.ndarray:
        size = torch.zeros(1, dtype=torch.long)
        dist.broadcast(size, 0)
        self._buffers.reverse()
        if self._buffers[0].nbytes != int(size):
            self._buffers[0] = np.empty(int(size), dtype=np.uint8)
        dist.broadcast(torch.from_numpy(self._buffers[0]), 0)
        return self._buffers[0]
