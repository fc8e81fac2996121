"""Small tensors on their way to a GPU: it goes on computing meanwhile.

An ordinary copy waits until the device has done all that was asked of it before. One from pinned memory takes its turn
like any other work.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on another device; nothing is waited for on the way from main memory to a GPU."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def moved_together(tensors: Sequence[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    """Flat tensors of one type, likewise, in one copy; on a CPU they are handed on."""
    if device.type != "cuda":
        return tuple(tensor.to(device) for tensor in tensors)
    return moved(torch.cat(list(tensors)), device).split([len(tensor) for tensor in tensors])
