"""At the start ranks are sent only what they do not hold already.

DeepSpeed sends every parameter of rank 0 to all ranks. On a CPU a loaded base is a private mapping of the model's own
file: all processes of a host share its pages until one of them writes, and to receive equal bytes is a write. Every
rank but the first would then hold a base of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
import xxhash
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import Tensor, nn

logger = logging.getLogger(__name__)

UNSENT = "ds_optim_param"
"""A parameter with this attribute is left out when DeepSpeed sends a model to all ranks."""


def install() -> None:
    """Makes every DeepSpeed engine of this process, a trainer's too, send only what differs."""
    plain = DeepSpeedEngine._broadcast_model
    if not hasattr(plain, "__wrapped__"):
        DeepSpeedEngine._broadcast_model = _sending_what_differs(plain)


def _sending_what_differs(send: Callable[[Any], None]) -> Callable[[Any], None]:
    @wraps(send)
    def send_what_differs(engine: Any) -> None:
        several = engine.dist_backend is not None and engine.seq_dp_world_size > 1
        if not several or torch.device(engine.device).type != "cpu":
            return send(engine)
        named = [
            (n, p) for n, p in engine.module.named_parameters() if not hasattr(p, "ds_id") and not hasattr(p, UNSENT)
        ]
        same = find_alike([p for _, p in named], engine.seq_data_parallel_group)
        odd = [name for (name, p), alike in zip(named, same, strict=True) if not alike and not p.requires_grad]
        if odd:
            logger.warning("%d frozen tensors differ between ranks, e.g. %s: rank 0's are taken", len(odd), odd[0])
        with _unsent([p for (_, p), alike in zip(named, same, strict=True) if alike]):
            send(engine)

    return send_what_differs


@contextmanager
def _unsent(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    for parameter in parameters:
        setattr(parameter, UNSENT, True)
    try:
        yield
    finally:
        for parameter in parameters:
            delattr(parameter, UNSENT)


@torch.no_grad()
def find_alike(tensors: Sequence[Tensor], group: Any = None) -> list[bool]:
    """Whether all ranks hold the same bytes, by tensor; equal on every rank, and nothing is written.

    All ranks call it with equally many tensors on CPUs.
    """
    if not tensors:
        return []
    digests = torch.tensor([_digest(t) for t in tensors])  # (tensors, 2)
    found = [torch.empty_like(digests) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(found, digests, group=group)
    return (torch.stack(found) == digests).all(dim=2).all(dim=0).tolist()


def _digest(tensor: Tensor) -> tuple[int, int]:
    """128 bits of a tensor's bytes, as two signed numbers."""
    raw = xxhash.xxh3_128_digest(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return int.from_bytes(raw[:8], signed=True), int.from_bytes(raw[8:], signed=True)
